"""Run by Alembic on the connection that `migrate` (or a test) put into the configuration."""

from alembic import context

from gateway.jobs.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
