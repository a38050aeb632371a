"""What a key may do, beside what its tenant may; none of the keys until now are bounded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("keys", sa.Column("policy", sa.Text))
