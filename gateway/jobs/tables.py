"""The tables as the code sees them; `migrations` builds them, and a test holds the two together."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, LargeBinary, MetaData, Table, Text, text

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
    Column("release", Text),
    Column("lease", Text),
    Column("lease_until", Double),
    # When the caller, or the end of its time, took it away; its files go after.
    Column("deleted_at", Double),
    Column("purged_at", Double),
    # Of a job that was finished from another's originals: which one's, and how it came to that.
    Column("source", Text),
    Column("hit", Text),
    # `find`: an id is unique on its surface.
    Index("ix_jobs_surface_public_id", "surface", "public_id", unique=True),
    # `page`: walked backwards from the cursor.
    Index("ix_jobs_tenant_created_at_gen_id", "tenant", "created_at", "gen_id"),
    # `due` and `counts`: the open states are a sliver of the table.
    Index("ix_jobs_state_next_at", "state", "next_at"),
    # What was deleted and still has files.
    Index(
        "ix_jobs_deleted_at",
        "deleted_at",
        sqlite_where=text("deleted_at IS NOT NULL AND purged_at IS NULL"),
        postgresql_where=text("deleted_at IS NOT NULL AND purged_at IS NULL"),
    ),
    # The copies of a job go with it, and all of them when their hour is over.
    Index(
        "ix_jobs_source_created_at",
        "source",
        "created_at",
        sqlite_where=text("source IS NOT NULL"),
        postgresql_where=text("source IS NOT NULL"),
    ),
)

#: What the cache knows of completed jobs. ``number`` grows with each row, for indexes that follow.
cache_entries = Table(
    "cache_entries",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("gen_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("forms", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("pictures", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("encoder", Text, nullable=False),
    Column("vector", LargeBinary),
    # The shared index that has it.
    Column("indexed", Text, nullable=False),
    Index("ix_cache_entries_gen_id", "gen_id", unique=True),
    Index("ix_cache_entries_key_number", "key", "number"),
    Index("ix_cache_entries_indexed_number", "indexed", "number"),
    Index("ix_cache_entries_expires_at", "expires_at"),
    sqlite_autoincrement=True,
)

#: Manifests, and what is left of them in the pixels. ``number`` grows with each row, for readers that follow.
records = Table(
    "records",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("label", Text, nullable=False),
    Column("gen_id", Text, nullable=False),
    Column("index", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("mime", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("mark", BigInteger),
    # Signed, as databases have no other: the 64 bits as they are.
    Column("code", BigInteger),
    Index("ix_records_label", "label", unique=True),
    Index("ix_records_gen_id", "gen_id"),
    Index("ix_records_mark", "mark"),
    Index("ix_records_sha256", "sha256"),
    sqlite_autoincrement=True,
)

#: API keys. ``scopes`` are separated by blanks; the secret itself is nowhere. A held key is no caller until released.
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
    Column("held_at", Double),
    Column("held_reason", Text),
    Index("ix_api_keys_digest", "digest", unique=True),
)

#: The audit, a chain of hashes (see `compliance.ledger`). Triggers refuse every change of what is written.
audit = Table(
    "audit",
    metadata,
    # Given by us, without a gap: whoever takes the next number makes the next link.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("kind", Text, nullable=False),
    # What the body says of the job too, for `of`.
    Column("gen_id", Text),
    Column("body", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index("ix_audit_gen_id", "gen_id"),
)

#: What callers object to. A job has one open appeal at most.
appeals = Table(
    "appeals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("gen_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("public_id", Text, nullable=False),
    Column("surface", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("decided_at", Double),
    Column("decided_by", Text),
    Column("note", Text),
    Index("ix_appeals_gen_id_created_at", "gen_id", "created_at"),
    Index("ix_appeals_state_created_at", "state", "created_at"),
    Index(
        "ix_appeals_open",
        "gen_id",
        unique=True,
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
)

#: What the operator must be told, until it was delivered.
events = Table(
    "events",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("delivered_at", Double),
    Index(
        "ix_events_next_at",
        "next_at",
        sqlite_where=text("delivered_at IS NULL"),
        postgresql_where=text("delivered_at IS NULL"),
    ),
)
