"""When nodes leave that have been drained or have given notice, which the gateway forgot when it was restarted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "node_departures",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("leaves_ms", sa.BigInteger, nullable=False),
        sa.Column("draining", sa.Boolean, nullable=False),
    )
