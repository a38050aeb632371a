from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from gateway.output import Format, show, usd

ROWS = [
    {"tenant": "acme, inc", "calls": 12, "charge_usd": "1.50", "revoked": None, "inner": 7},
    {"tenant": 'zeta "z"\nltd', "calls": 3, "charge_usd": "0.000000025", "revoked": "2026-02-14", "inner": 8},
]
COLUMNS = ["tenant", "calls", "charge_usd", "revoked"]


def shown(capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], as_format: Format) -> str:
    show(rows, COLUMNS, as_format)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_json_holds_all_there_is_of_the_rows(capsys: pytest.CaptureFixture[str]):
    assert json.loads(shown(capsys, ROWS, Format.JSON)) == ROWS
    assert json.loads(shown(capsys, [], Format.JSON)) == []


def test_csv_holds_the_columns_and_can_be_read_back(capsys: pytest.CaptureFixture[str]):
    text = shown(capsys, ROWS, Format.CSV)
    wanted = [{column: "" if row[column] is None else str(row[column]) for column in COLUMNS} for row in ROWS]
    assert list(csv.DictReader(io.StringIO(text, newline=""))) == wanted
    assert shown(capsys, [], Format.CSV) == "tenant,calls,charge_usd,revoked\n"


def test_a_table_that_goes_to_no_terminal_is_aligned_and_cuts_nothing(capsys: pytest.CaptureFixture[str]):
    rows = [ROWS[0], {**ROWS[1], "tenant": "z" * 300}]
    assert shown(capsys, rows, Format.TABLE).splitlines() == [
        f"{'tenant':300}  calls   charge_usd  revoked",
        f"{'acme, inc':300}     12         1.50",
        f"{'z' * 300}      3  0.000000025  2026-02-14",
    ]


def test_a_table_without_rows_is_its_heading(capsys: pytest.CaptureFixture[str]):
    assert shown(capsys, [], Format.TABLE).split() == COLUMNS


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [
        (0, "0.00"), (1, "0.000000001"), (25, "0.000000025"), (10_000_000, "0.01"), (100_000_000, "0.10"),
        (1_500_000_000, "1.50"), (1_234_567_891, "1.234567891"), (-1, "-0.000000001"), (-1_500_000_000, "-1.50"),
        (2 * 10**18, "2000000000.00"),
    ],
)  # fmt: skip
def test_an_amount_is_shown_exactly_and_with_cents_at_the_least(nano_usd: int, text: str):
    assert usd(nano_usd) == text
