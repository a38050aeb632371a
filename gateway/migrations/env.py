"""What Alembic runs for every command: the migrations, on the connection and in the transaction it was handed.

There is no alembic.ini. `gateway.database` hands over a connection that already holds the lock against a second process
doing the same; to write a new revision, see `gateway.database.alembic_config`.
"""

from __future__ import annotations

from alembic import context

from gateway.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True
)
context.run_migrations()
