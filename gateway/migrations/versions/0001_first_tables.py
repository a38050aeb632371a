"""Tenants, keys, usage, and the secret that digests of keys are keyed with, made here: once per database."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_meta()
    _create_keys()
    _create_usage()


def _create_meta() -> None:
    meta = op.create_table(
        "meta",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key_secret", sa.LargeBinary(32), nullable=False),
        sa.Column("keys_revision", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(meta, [{"id": 1, "key_secret": secrets.token_bytes(32), "keys_revision": 0}])


def _create_keys() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column(
            "tenant", sa.String(64), sa.ForeignKey("tenants.name", name="keys_tenant_fkey"), nullable=False
        ),
        sa.Column("name", sa.String(128)),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("last4", sa.String(4), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_ms", sa.BigInteger),
    )
    op.create_index("keys_tenant", "keys", ["tenant"])


def _create_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("call_id", sa.Text, primary_key=True),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("api", sa.Text, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("ttft_ms", sa.Double),
        sa.Column("duration_ms", sa.Double, nullable=False),
        sa.Column("charge_nano_usd", sa.BigInteger, nullable=False),
        sa.Column("cost_nano_usd", sa.BigInteger, nullable=False),
    )
    op.create_index("usage_time_ms", "usage", ["time_ms"])
