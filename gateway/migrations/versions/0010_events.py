"""Usage events: what webhooks are to be told, how far each has been told, and what they would not take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "event_batches",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("webhook", sa.String(128)),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("ids", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "event_webhooks",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("batch_number", sa.BigInteger, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("holder", sa.String(32)),
        sa.Column("held_until_ms", sa.BigInteger, nullable=False),
        sa.Column("sent", sa.BigInteger, nullable=False),
        sa.Column("last_sent_ms", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("failing_since_ms", sa.BigInteger),
        sa.Column("failure", sa.Text),
        sa.Column("retry_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "event_refusals",
        sa.Column("webhook", sa.String(128), primary_key=True),
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("part", sa.String(128), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("refused_ms", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("event_refusals_tenant", "event_refusals", ["webhook", "tenant"])
