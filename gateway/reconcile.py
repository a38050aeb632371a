"""A provider's invoice against the ledger, line by line.

The provider's file is a CSV with a header. Of its columns are needed: a day (`date` or `day`), a `model`, and an amount in USD
(`amount`, `cost` or `amount_usd`); other spellings of its own can be named. Several lines of a day and model are added up.
"""

from __future__ import annotations

import csv
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.spans import BadSpan, span_ms
from gateway.usage_totals import Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.store import Store
    from gateway.usage_totals import Measures, Total

DAY = ("date", "day", "usage_date", "ChargePeriodStart")
MODEL = ("model", "line_item", "ResourceId", "SkuId")
AMOUNT = ("amount_usd", "amount", "cost", "cost_usd", "BilledCost")

Billed = dict[tuple[str, str], Decimal]
"""USD by day and model."""


class Compared(Struct, frozen=True):
    """One day and model."""

    day: str
    model: str
    """By its public name."""
    billed_nano_usd: Decimal | None
    """None: the invoice has no such line."""
    ledger_nano_usd: int | None
    """None: we have made no call there."""

    @property
    def difference_nano_usd(self) -> Decimal:
        """What is billed beyond what we have counted."""
        return (self.billed_nano_usd or Decimal()) - (self.ledger_nano_usd or 0)


class BadInvoice(Exception):
    """What cannot be read, with its line."""


def read(lines: Iterable[str]) -> Billed:
    """An invoice from its text. Raises BadInvoice."""
    table = csv.DictReader(lines)
    names = table.fieldnames or []
    day, model, amount = (_column(names, known) for known in (DAY, MODEL, AMOUNT))
    found: Billed = {}
    for number, row in enumerate(table, start=2):
        try:
            usd = Decimal((row[amount] or "").strip().removeprefix("$"))
        except InvalidOperation:
            usd = Decimal("NaN")
        if not usd.is_finite():
            raise BadInvoice(f"line {number}: {row[amount]!r} is no amount")
        key = ((row[day] or "")[:10], (row[model] or "").strip())
        found[key] = found.get(key, Decimal()) + usd
    return found


def _column(names: Sequence[str], known: Sequence[str]) -> str:
    for name in known:
        if name in names:
            return name
    raise BadInvoice(f"line 1: none of {', '.join(known)} is among the columns {', '.join(names)}")


def compare(
    store: Store, endpoint: str, billed: Billed, served: dict[str, str] | None = None
) -> list[Compared]:
    """Every day and model of the invoice, or that the ledger has at `endpoint` in the days of the invoice.

    `served` has the provider's names of models with ours. Raises BadInvoice.
    """
    if not billed:
        return []
    days = sorted(day for day, _ in billed)
    try:
        since_ms, until_ms = span_ms(days[0], days[-1])
    except BadSpan as bad:
        raise BadInvoice(str(bad)) from None
    names = served or {}
    theirs: Billed = {}
    for (day, model), usd in billed.items():
        key = (day, names.get(model, model))
        theirs[key] = theirs.get(key, Decimal()) + usd
    question = Question(since_ms, until_ms, ("day", "model"), {"endpoint": endpoint}, "group")
    ours = {(day, model): sums.cost_nano_usd for (day, model), sums in _by_group(store.usage(question))}
    return [
        Compared(
            day,
            model,
            theirs[day, model].scaleb(9) if (day, model) in theirs else None,
            ours.get((day, model)),
        )
        for day, model in sorted(theirs.keys() | ours.keys())
    ]


def _by_group(found: list[Total]) -> Iterable[tuple[tuple[str, str], Measures]]:
    for total in found:
        day, model = total.group
        yield (day, model), total.sums
