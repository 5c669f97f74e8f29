"""Jobs and API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("gen_id", sa.Text, nullable=False),
        sa.Column("public_id", sa.Text, nullable=False),
        sa.Column("surface", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("drawing", sa.Text, nullable=False),
        sa.Column("delivery", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("notices", sa.Text, nullable=False),
        sa.Column("backend_id", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer, nullable=False),
        sa.Column("deadline_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("drawn_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("next_at", sa.Double, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("drawn", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("fault", sa.Text),
        sa.Column("lease", sa.Text),
        sa.Column("lease_until", sa.Double),
        sa.PrimaryKeyConstraint("gen_id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_surface_public_id", "jobs", ["surface", "public_id"], unique=True)
    op.create_index("ix_jobs_tenant_created_at_gen_id", "jobs", ["tenant", "created_at", "gen_id"])
    op.create_index("ix_jobs_state_next_at", "jobs", ["state", "next_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("disabled_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_index("ix_api_keys_digest", "api_keys", ["digest"], unique=True)
