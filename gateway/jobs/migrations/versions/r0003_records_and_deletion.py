"""Manifests that are found again, and jobs that were taken away."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TO_PURGE = sa.text("deleted_at IS NOT NULL AND purged_at IS NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deleted_at", sa.Double))
    op.add_column("jobs", sa.Column("purged_at", sa.Double))
    op.create_index("ix_jobs_deleted_at", "jobs", ["deleted_at"], sqlite_where=_TO_PURGE, postgresql_where=_TO_PURGE)
    op.create_table(
        "records",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("gen_id", sa.Text, nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("mime", sa.Text, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("mark", sa.BigInteger),
        sa.Column("code", sa.BigInteger),
        sa.PrimaryKeyConstraint("number", name="pk_records"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_records_label", "records", ["label"], unique=True)
    op.create_index("ix_records_gen_id", "records", ["gen_id"])
    op.create_index("ix_records_mark", "records", ["mark"])
    op.create_index("ix_records_sha256", "records", ["sha256"])
