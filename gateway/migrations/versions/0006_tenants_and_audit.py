"""Tenants with policies and projects, keys that end and are rotated, keys of administrators, and an append-only audit log.

What a trigger of the audit log refuses is refused to whoever may write to the database. Only who may change its schema
can take the trigger away.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_REFUSE = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
_TAKEN = "EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)"
_SQLITE = (
    f"CREATE TRIGGER audit_not_changed BEFORE UPDATE ON audit {_REFUSE}",
    f"CREATE TRIGGER audit_not_deleted BEFORE DELETE ON audit {_REFUSE}",
    # INSERT OR REPLACE deletes without asking the trigger above.
    f"CREATE TRIGGER audit_not_replaced BEFORE INSERT ON audit WHEN {_TAKEN} {_REFUSE}",
)
_POSTGRESQL = (
    """CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$""",
    """CREATE TRIGGER audit_not_changed BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()""",
    """CREATE TRIGGER audit_not_emptied BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()""",
)


def upgrade() -> None:
    _extend_tenants()
    _extend_keys()
    _create_admin_keys()
    _create_audit()
    for column in ("project", "customer"):
        op.add_column("usage", sa.Column(column, sa.Text, nullable=False, server_default=""))


def _extend_tenants() -> None:
    for column in (
        sa.Column("suspended_ms", sa.BigInteger),
        sa.Column("policy", sa.Text),
        sa.Column("metadata", sa.Text),
    ):
        op.add_column("tenants", column)
    op.create_table(
        "projects",
        sa.Column(
            "tenant",
            sa.String(64),
            sa.ForeignKey("tenants.name", name="projects_tenant_fkey"),
            primary_key=True,
        ),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("suspended_ms", sa.BigInteger),
        sa.Column("policy", sa.Text),
        sa.Column("metadata", sa.Text),
    )


def _extend_keys() -> None:
    with op.batch_alter_table("keys") as keys:
        keys.add_column(sa.Column("project", sa.String(64)))
        keys.add_column(sa.Column("expires_ms", sa.BigInteger))
        keys.add_column(sa.Column("metadata", sa.Text))
        keys.create_foreign_key("keys_project_fkey", "projects", ["tenant", "project"], ["tenant", "name"])
    op.create_table(
        "key_former_secrets",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column(
            "key_id",
            sa.String(32),
            sa.ForeignKey("keys.id", name="key_former_secrets_key_fkey"),
            nullable=False,
        ),
        sa.Column("ends_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("key_former_secrets_key", "key_former_secrets", ["key_id"])


def _create_admin_keys() -> None:
    op.create_table(
        "admin_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128)),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("last4", sa.String(4), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_tenant", "audit", ["tenant", "id"])
    op.create_index("audit_subject", "audit", ["subject", "id"])
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
