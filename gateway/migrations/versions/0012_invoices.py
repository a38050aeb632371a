"""Invoices as they were issued, numbered without a gap. They are append-only, as the ledger is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_REFUSE = "BEGIN SELECT RAISE(ABORT, 'invoices is append-only'); END"
_TAKEN = (
    "EXISTS (SELECT 1 FROM invoices WHERE number = NEW.number OR (tenant = NEW.tenant AND month = NEW.month))"
)
_PROTECT = {
    "sqlite": (
        f"CREATE TRIGGER invoices_no_update BEFORE UPDATE ON invoices {_REFUSE}",
        f"CREATE TRIGGER invoices_no_delete BEFORE DELETE ON invoices {_REFUSE}",
        # INSERT OR REPLACE deletes without asking the trigger above.
        f"CREATE TRIGGER invoices_no_replace BEFORE INSERT ON invoices WHEN {_TAKEN} {_REFUSE}",
    ),
    "postgresql": (
        """CREATE TRIGGER invoices_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON invoices
        FOR EACH STATEMENT EXECUTE FUNCTION tidegate_append_only()""",
    ),
}


def upgrade() -> None:
    op.create_table(
        "invoices",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("issued_ms", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.UniqueConstraint("tenant", "month", name="invoices_tenant_month_key"),
    )
    for statement in _PROTECT[op.get_bind().dialect.name]:
        op.execute(sa.text(statement))
