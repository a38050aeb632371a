from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner
from usage_rows import a_row

from gateway.cli_usage import app, span
from gateway.output import usd
from gateway.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

NOW = datetime(2026, 2, 14, 15, 30, tzinfo=UTC)


def day(month: int, number: int, hour: int = 0) -> datetime:
    return datetime(2026, month, number, hour, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tidegate.yaml"
    path.write_text(
        f"database: sqlite:///{tmp_path}/tidegate.db\n"
        "models: {llama: {price: {input: 1, output: 1}, endpoints: [{worker: 'http://127.0.0.1:1'}]}}\n"
    )
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    with Store.open(f"sqlite:///{tmp_path}/tidegate.db") as store:
        store.record(
            [
                a_row(
                    f"{tenant}-{number}",
                    time_ms=now_ms - 1000,
                    tenant=tenant,
                    key_id=f"key_{tenant}",
                    cached_tokens=0,
                    completion_tokens=5,
                    charge_nano_usd=1_000_000_005,
                    cost_nano_usd=25,
                )
                for tenant, calls in (("acme", 1), ("zeta", 2))
                for number in range(calls)
            ]
        )
    return path


def usage(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--config", str(config)])


def test_as_json_money_is_given_as_integers_and_as_exact_decimals(config: Path):
    result = usage(config, "--by", "tenant", "--from", "1h", "--format", "json")
    assert result.stderr == ""
    assert json.loads(result.stdout) == [
        {
            "tenant": "zeta",
            "calls": 2,
            "errors": 0,
            "prompt_tokens": 20,
            "cached_tokens": 0,
            "completion_tokens": 10,
            "reasoning_tokens": 0,
            "wasted_tokens": 0,
            "estimated_calls": 0,
            "helped_calls": 0,
            "charge_nano_usd": 2_000_000_010,
            "cost_nano_usd": 50,
            "waste_nano_usd": 0,
            "charge_usd": "2.00000001",
            "cost_usd": "0.00000005",
            "waste_usd": "0.00",
        },
        {
            "tenant": "acme",
            "calls": 1,
            "errors": 0,
            "prompt_tokens": 10,
            "cached_tokens": 0,
            "completion_tokens": 5,
            "reasoning_tokens": 0,
            "wasted_tokens": 0,
            "estimated_calls": 0,
            "helped_calls": 0,
            "charge_nano_usd": 1_000_000_005,
            "cost_nano_usd": 25,
            "waste_nano_usd": 0,
            "charge_usd": "1.000000005",
            "cost_usd": "0.000000025",
            "waste_usd": "0.00",
        },
    ]


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("tenant", ["zeta", "acme"]),
        ("key", ["key_zeta", "key_acme"]),
        ("model", ["llama"]),
        ("endpoint", ["w1"]),
        ("tier", ["default"]),
    ],
)
def test_usage_is_grouped_by_what_is_asked_for(config: Path, by: str, names: list[str]):
    result = usage(config, "--by", by, "--from", "1h", "--format", "csv")
    assert [row[by] for row in csv.DictReader(io.StringIO(result.stdout))] == names


def test_a_table_in_a_pipe_is_plain_text_with_exact_money(config: Path):
    lines = usage(config, "--from", "1h").stdout.splitlines()
    assert lines[0].split()[:2] == ["tenant", "calls"]
    assert lines[1].split() == ["zeta", "2", "0", "20", "0", "10", *"000", "2.00000001", "0.00000005", "0.00"]


def test_a_table_on_a_terminal_has_every_value_in_it(config: Path):
    terminal, behind = pty.openpty()
    environ = {**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    command = [
        sys.executable,
        "-c",
        "from gateway.cli_usage import app; app()",
        "--from",
        "1h",
        "--config",
        config,
    ]
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        subprocess.run(command, stdout=behind, env=environ, check=True)
        os.close(behind)
        text = shown.read(65536).decode()
    assert "┃" in text
    assert "2.00000001" in text


def test_a_span_without_calls_gives_no_rows_and_no_error(config: Path):
    result = usage(config, "--from", "2020-01-01", "--to", "2020-01-31", "--format", "json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


@pytest.mark.parametrize(
    "wrong", [["--from", "yesterday"], ["--to", "7x"], ["--by", "tenant,colour"], ["--from", "99999999999w"]]
)
def test_an_argument_that_cannot_be_understood_is_named(config: Path, wrong: list[str]):
    result = usage(config, *wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.stderr


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, None, (day(2, 1), day(3, 1))),
        ("2026-01-05", None, (day(1, 5), NOW)),
        (None, "2026-01-05", (day(1, 1), day(1, 6))),
        ("2026-01-05", "2026-01-05", (day(1, 5), day(1, 6))),
        ("2026-01-05T06:00", "2026-01-05T08:00+01:00", (day(1, 5, 6), day(1, 5, 7))),
        ("7d", None, (NOW - timedelta(days=7), NOW)),
        ("2w", "12h", (NOW - timedelta(days=14), NOW - timedelta(hours=12))),
    ],
)
def test_a_span_is_read_in_utc_and_dates_are_whole_days(
    since: str | None, until: str | None, expected: tuple[datetime, datetime]
):
    assert span(since, until, NOW) == expected


def test_the_last_month_of_a_year_ends_with_the_year():
    assert span(None, None, datetime(2026, 12, 31, 23, tzinfo=UTC)) == (
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )


def test_a_span_that_ends_before_it_begins_is_refused():
    with pytest.raises(typer.BadParameter):
        span("2026-01-05", "2026-01-04", NOW)


@given(st.integers(-(10**18), 10**18))
def test_an_amount_is_written_exactly(nano_usd: int):
    assert Decimal(usd(nano_usd)) * 10**9 == nano_usd
    assert len(usd(nano_usd).partition(".")[2]) >= 2
