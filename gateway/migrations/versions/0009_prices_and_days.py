"""Sums by the day, of those by the hour; and prices over time, of which nothing was written down until now."""

# ruff: noqa: S608 - the SQL is made of names in the code

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"

DIMENSIONS = ("tenant", "project", "key_id", "model", "endpoint", "tier")
MEASURES = (
    *("calls", "errors", "estimated_calls", "helped_calls"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "wasted_tokens"),
    *("charge_nano_usd", "cost_nano_usd", "waste_nano_usd"),
)


def upgrade() -> None:
    _create_days("usage_days", "usage_hours", DIMENSIONS)
    _create_days("usage_customer_days", "usage_customer_hours", (*DIMENSIONS, "customer"))
    op.create_table(
        "prices",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("kind", "name", "endpoint")),
        sa.Column("valid_from_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("input_pico_usd", sa.BigInteger),
        sa.Column("output_pico_usd", sa.BigInteger),
        sa.Column("cached_input_pico_usd", sa.BigInteger),
        sa.Column("reasoning_pico_usd", sa.BigInteger),
        sa.Column("millionths", sa.BigInteger),
    )


def _create_days(name: str, hours: str, dimensions: tuple[str, ...]) -> None:
    op.create_table(
        name,
        sa.Column("day_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(each, sa.Text, primary_key=True) for each in dimensions),
        *(sa.Column(each, sa.BigInteger, nullable=False) for each in MEASURES),
        sqlite_with_rowid=False,
    )
    op.create_index(f"{name}_tenant", name, ["tenant", "day_ms"])
    by, sums = ", ".join(dimensions), ", ".join(f"sum({each})" for each in MEASURES)
    op.execute(
        sa.text(
            f"INSERT INTO {name} (day_ms, {by}, {', '.join(MEASURES)})"
            f" SELECT hour_ms - hour_ms % 86400000 AS day_ms, {by}, {sums} FROM {hours}"
            f" GROUP BY hour_ms - hour_ms % 86400000, {by}"
        )
    )
