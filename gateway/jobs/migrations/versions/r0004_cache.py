"""What the cache knows of completed jobs, and jobs that are finished from another's originals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_COPIES = sa.text("source IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("source", sa.Text))
    op.add_column("jobs", sa.Column("hit", sa.Text))
    op.create_index(
        "ix_jobs_source_created_at",
        "jobs",
        ["source", "created_at"],
        sqlite_where=_COPIES,
        postgresql_where=_COPIES,
    )
    op.create_table(
        "cache_entries",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        sa.Column("gen_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("forms", sa.Text, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("pictures", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("encoder", sa.Text, nullable=False),
        sa.Column("vector", sa.LargeBinary),
        sa.Column("indexed", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_cache_entries"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_cache_entries_gen_id", "cache_entries", ["gen_id"], unique=True)
    op.create_index("ix_cache_entries_key_number", "cache_entries", ["key", "number"])
    op.create_index("ix_cache_entries_indexed_number", "cache_entries", ["indexed", "number"])
    op.create_index("ix_cache_entries_expires_at", "cache_entries", ["expires_at"])
