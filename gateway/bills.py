"""Invoices and statements as others get them: JSON with every amount also in USD, CSV, or a page to print."""

from __future__ import annotations

import csv
import io
from typing import Any

from msgspec import structs
from pydantic import BaseModel, Field

from gateway.invoice import Invoice, Line, Movement, Statement
from gateway.output import BillFormat, iso, usd
from gateway.pdf import document

_LINE = ("month", "project", "model", "tier", "calls", "prompt_tokens", "cached_tokens", "completion_tokens")
_COLUMNS = ("kind", "id", *_LINE, "reasoning_tokens", "note", "amount_usd")
_RULE = "-" * 92


MEDIA_TYPES = {
    BillFormat.JSON: "application/json",
    BillFormat.CSV: "text/csv; charset=utf-8",
    BillFormat.PDF: "application/pdf",
}


class LineShown(BaseModel):
    month: str
    project: str
    model: str
    tier: str
    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    amount_nano_usd: int
    amount_usd: str = Field(description="The same, exactly; so everywhere here.")


class MovementShown(BaseModel):
    id: str
    kind: str
    time_ms: int
    call_id: str | None
    note: str
    amount_nano_usd: int
    amount_usd: str


class _Bill(BaseModel):
    month: str
    opening_nano_usd: int
    opening_usd: str
    lines: list[LineShown] = Field(description="Usage of the month, by project, model and tier.")
    total_nano_usd: int = Field(description="What is billed.")
    total_usd: str
    payments: list[MovementShown]
    closing_nano_usd: int = Field(description="What was owed when the month ended.")
    closing_usd: str


class InvoiceShown(_Bill):
    number: str | None = Field(description="Null: a draft, which may still change.")
    issued: str | None
    tenant: str
    late: list[LineShown] = Field(description="Usage of earlier months that came in after their invoice.")
    adjustments: list[MovementShown] = Field(
        description="Credits, refunds, corrections; as `late`, what came in of the time before the first invoice."
    )


class StatementShown(_Bill):
    node: str


def shown(of: Invoice | Statement) -> InvoiceShown | StatementShown:
    if isinstance(of, Statement):
        return StatementShown.model_validate(with_usd(structs.asdict(of)))
    issued = None if of.issued_ms is None else iso(of.issued_ms)
    return InvoiceShown.model_validate({**with_usd(structs.asdict(of)), "issued": issued})


def rendered(of: Invoice | Statement, as_format: BillFormat) -> bytes:
    match as_format:
        case BillFormat.JSON:
            return shown(of).model_dump_json(indent=2).encode() + b"\n"
        case BillFormat.CSV:
            text = io.StringIO()
            writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(_rows(of))
            return text.getvalue().encode()
        case BillFormat.PDF:
            return document(in_words(of))


def _rows(of: Invoice | Statement) -> list[dict[str, Any]]:
    late, adjustments = (of.late, of.adjustments) if isinstance(of, Invoice) else ((), ())
    lines = [{"kind": "usage", **structs.asdict(line)} for line in (*of.lines, *late)]
    rows = [*lines, *map(structs.asdict, (*adjustments, *of.payments))]
    return [{**row, "amount_usd": usd(row["amount_nano_usd"])} for row in rows]


def with_usd(value: Any) -> Any:
    """Beside every amount in nano-USD, the same in USD."""
    if isinstance(value, Line | Movement):
        value = structs.asdict(value)
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for name, each in value.items():
            found[name] = with_usd(each)
            if name.endswith("_nano_usd"):
                found[name.removesuffix("_nano_usd") + "_usd"] = usd(each)
        return found
    return [with_usd(each) for each in value] if isinstance(value, tuple) else value


def in_words(of: Invoice | Statement) -> list[str]:
    """As lines of text, for a page."""
    late, adjustments = (of.late, of.adjustments) if isinstance(of, Invoice) else ((), ())
    out = [*_head(of), f"Month {of.month} (UTC)", "", _money("Brought forward", of.opening_nano_usd), _RULE]
    out.append(f"{'project':12}{'model':26}{'tier':9}{'calls':>9}{'tokens':>14}{'USD':>22}")
    out += map(_used, of.lines)
    for month in dict.fromkeys(line.month for line in late):
        out.append(f"Of {month}, since its invoice:")
        out += [_used(line) for line in late if line.month == month]
    out += [_money(f"{each.kind} {each.note or each.id}", each.amount_nano_usd) for each in adjustments]
    out += [_RULE, _money("Total of the month", of.total_nano_usd)]
    out += [_money(f"{each.kind} {each.note or each.id}", each.amount_nano_usd) for each in of.payments]
    return [*out, _RULE, _money("Carried forward", of.closing_nano_usd)]


def _head(of: Invoice | Statement) -> list[str]:
    if isinstance(of, Statement):
        return [f"Statement for node {of.node}"]
    if of.number is None or of.issued_ms is None:
        return [f"Invoice for {of.tenant}", "Draft: it may still change"]
    return [f"Invoice for {of.tenant}", f"Number {of.number}, issued {iso(of.issued_ms)[:10]}"]


def _used(line: Line) -> str:
    tokens = line.prompt_tokens + line.completion_tokens
    what = f"{line.project[:11]:12}{line.model[:25]:26}{line.tier:9}"
    return f"{what}{line.calls:>9}{tokens:>14}{usd(line.amount_nano_usd):>22}"


def _money(what: str, nano_usd: int) -> str:
    return f"{what[:69]:70}{usd(nano_usd):>22}"
