"""The tables, in one place: queries are built from these, migrations create them, and a test holds the two together.

Rows of the audit log are never changed nor deleted: triggers, which the migration makes, see to that.

Money is integers (nano-USD), time is integer milliseconds since 1970 UTC. A usage row names its tenant and key
without a foreign key: calls with the master key, or with keys switched off, are metered as well.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
)

METADATA = MetaData()

META = Table(
    "meta",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # one row, 1
    Column("key_secret", LargeBinary(32), nullable=False),  # what the digests of keys are keyed with
    Column("keys_revision", BigInteger, nullable=False),  # goes up with every change of the next five tables
)

TENANTS = Table(
    "tenants",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("suspended_ms", BigInteger),
    Column("policy", Text),  # JSON; see gateway.policy
    Column("metadata", Text),  # JSON: the operator's own words, texts by name
)

PROJECTS = Table(
    "projects",
    METADATA,
    Column("tenant", ForeignKey("tenants.name", name="projects_tenant_fkey"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("suspended_ms", BigInteger),
    Column("policy", Text),
    Column("metadata", Text),
)

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.name", name="keys_tenant_fkey"), nullable=False),
    Column("name", String(128)),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("prefix", String(16), nullable=False),
    Column("last4", String(4), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
    Column("policy", Text),
    Column("project", String(64)),
    Column("expires_ms", BigInteger),
    Column("metadata", Text),
    Index("keys_tenant", "tenant"),
    ForeignKeyConstraint(
        ["tenant", "project"], ["projects.tenant", "projects.name"], name="keys_project_fkey"
    ),
)

FORMER_SECRETS = Table(
    "key_former_secrets",  # of keys that have been rotated: each admits calls until it ends
    METADATA,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("key_id", ForeignKey("keys.id", name="key_former_secrets_key_fkey"), nullable=False),
    Column("ends_ms", BigInteger, nullable=False),
    Index("key_former_secrets_key", "key_id"),
)

ADMIN_KEYS = Table(
    "admin_keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("name", String(128)),
    Column("role", String(16), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("prefix", String(16), nullable=False),
    Column("last4", String(4), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
)

AUDIT = Table(
    "audit",
    METADATA,
    # SQLite makes numbers by itself only for its own INTEGER.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("time_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("tenant", Text),
    Column("before", Text),  # JSON, without secrets
    Column("after", Text),
    Index("audit_tenant", "tenant", "id"),
    Index("audit_subject", "subject", "id"),
    sqlite_autoincrement=True,  # a number is never used again
)

USAGE = Table(
    "usage",
    METADATA,
    Column("call_id", Text, primary_key=True),
    Column("time_ms", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("api", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("ttft_ms", Double),
    Column("duration_ms", Double, nullable=False),
    Column("charge_nano_usd", BigInteger, nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
    Column("waste_nano_usd", BigInteger, nullable=False, server_default="0"),
    Column("project", Text, nullable=False, server_default=""),
    Column("customer", Text, nullable=False, server_default=""),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    Column("hosted", Boolean, nullable=False, server_default=false()),
    Index("usage_time_ms", "time_ms"),
)

SHARES = Table(
    "usage_shares",  # of calls where it was not one endpoint alone; see gateway.ledger
    METADATA,
    Column("call_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 0
    Column("endpoint", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("charge_nano_usd", BigInteger, nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
    Column("waste_nano_usd", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    Column("hosted", Boolean, nullable=False, server_default=false()),
)

NODES = Table(
    "nodes",  # registered now
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("section", Text, nullable=False),  # JSON; see gateway.config_node
    Column("registered_ms", BigInteger, nullable=False),
    Column("heard_ms", BigInteger, nullable=False, server_default="0"),  # where processes share nodes
)

NODE_SESSIONS = Table(
    "node_sessions",  # when each node has been there
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("started_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("ended_ms", BigInteger),
    Column("ending", Text),
)

NODE_DEPARTURES = Table(
    "node_departures",  # of those that drain or have given notice, whether they have registered or not
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("leaves_ms", BigInteger, nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("own", Boolean, nullable=False),
)
