"""Who has said that a node leaves: the node itself, or an operator, whose word holds until it is taken back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("node_departures", sa.Column("own", sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute("UPDATE node_departures SET own = NOT draining")
