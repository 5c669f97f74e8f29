"""The tables as the code sees them; `migrations` builds them, and a test holds the two together."""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, Integer, MetaData, Table, Text

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

#: One row per generation. Scalars are columns, value objects JSON text (see `rows`), times seconds since the epoch.
jobs = Table(
    "jobs",
    metadata,
    Column("gen_id", Text, primary_key=True),
    Column("public_id", Text, nullable=False),
    Column("surface", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("drawing", Text, nullable=False),
    Column("delivery", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("notices", Text, nullable=False),
    Column("backend_id", Text),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("total_steps", Integer, nullable=False),
    Column("deadline_at", Double, nullable=False),
    Column("started_at", Double),
    Column("drawn_at", Double),
    Column("finished_at", Double),
    Column("next_at", Double, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("drawn", Text),
    Column("outcome", Text),
    Column("fault", Text),
    Column("lease", Text),
    Column("lease_until", Double),
    # `find`: an id is unique on its surface.
    Index("ix_jobs_surface_public_id", "surface", "public_id", unique=True),
    # `page`: walked backwards from the cursor.
    Index("ix_jobs_tenant_created_at_gen_id", "tenant", "created_at", "gen_id"),
    # `due` and `counts`: the open states are a sliver of the table.
    Index("ix_jobs_state_next_at", "state", "next_at"),
)

#: API keys. ``scopes`` are separated by blanks; the secret itself is nowhere.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("disabled_at", Double),
    Index("ix_api_keys_digest", "digest", unique=True),
)
