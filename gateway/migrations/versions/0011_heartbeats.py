"""When a node was last heard of: several processes share the registry, and its heartbeats reach any of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("heard_ms", sa.BigInteger, nullable=False, server_default="0"))
