"""Usage and money as FOCUS rows, the FinOps Foundation's format for bills: version 1.0, which its public validator knows,
and of 1.2 the column InvoiceId.

A row is the usage of one day by a tenant's project, key, model and tier, or one credit, refund or correction. Costs are what
the tenant owes; payments are no charges and have no row. A billing period has what its invoices have, and what is on none
yet (gateway.issuing.period): the sum of BilledCost by InvoiceId is that invoice's total, for good. Where something has come
in late, the invoices say of which month, project, model and tier it is, and no more; so do their rows.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import select

from gateway.billing import balances
from gateway.bookkeeping import DAY_MS
from gateway.invoice import COUNTS
from gateway.issuing import period
from gateway.spans import month_ms, ms
from gateway.tables import USAGE
from gateway.usage_totals import Question

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.invoice import Invoice, Line, Movement
    from gateway.store import Store
    from gateway.usage_totals import Grouping

COLUMNS = (
    *("AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription"),
    *("ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountCategory"),
    *("CommitmentDiscountId", "CommitmentDiscountName", "CommitmentDiscountStatus", "CommitmentDiscountType"),
    *("ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost"),
    *(
        "InvoiceId",
        "InvoiceIssuerName",
        "ListCost",
        "ListUnitPrice",
        "PricingCategory",
        "PricingQuantity",
        "PricingUnit",
    ),
    *(
        "ProviderName",
        "PublisherName",
        "RegionId",
        "RegionName",
        "ResourceId",
        "ResourceName",
        "ResourceType",
    ),
    *("ServiceCategory", "ServiceName", "SkuId", "SkuPriceId", "SubAccountId", "SubAccountName", "Tags"),
    *("x_Calls", "x_PromptTokens", "x_CachedTokens", "x_CompletionTokens", "x_ReasoningTokens"),
)

VALIDATOR_NAMES = {
    "InvoiceIssuerName": "InvoiceIssuer",
    "ProviderName": "Provider",
    "PublisherName": "Publisher",
    "ResourceId": "ResourceID",
}
"""What the public validator (focus-validator 1.0.0) calls columns that have other names in the specification."""
VALIDATOR_TYPE = "ChargeType"
"""And one of its rules asks for ChargeCategory by a name that it had in a draft."""

_BY: tuple[Grouping, ...] = ("day", "project", "key", "model", "tier")
_BEING = {
    "credit": ("Credit", "Given by the operator"),
    "refund": ("Adjustment", "Refund of the call"),
    "correction": ("Adjustment", "Correction"),
    "late": ("Adjustment", ""),
}


def rows(store: Store, month: str, issuer: str, tenant: str | None = None) -> Iterator[dict[str, Any]]:
    """All charges of a billing period, of one tenant or of all. Raises ValueError where it is none."""
    start_ms, end_ms = month_ms(month)
    alike = {
        "BillingCurrency": "USD",
        "BillingPeriodStart": _moment(start_ms),
        "BillingPeriodEnd": _moment(end_ms),
        "InvoiceIssuerName": issuer,
        "ProviderName": issuer,
        "PublisherName": issuer,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Inference",
    }
    for each in _tenants(store, start_ms, end_ms) if tenant is None else [tenant]:
        made, billed_until = period(store, each, month)
        if made is not None:
            invoice = {"InvoiceId": made.number or ""}
            for row in _charges(store, made, billed_until):
                yield dict.fromkeys(COLUMNS, "") | alike | invoice | row


def _tenants(store: Store, start_ms: int, end_ms: int) -> list[str]:
    """Those that have been charged anything, and those that have used something for nothing."""
    used = {total.group[0] for total in store.usage(Question(start_ms, end_ms, ("tenant",)))}
    kinds = (account.partition(":") for account in balances(store))
    return sorted(used | {name for kind, _, name in kinds if kind == "tenant"})


def _charges(store: Store, made: Invoice, billed_until: str) -> Iterator[dict[str, Any]]:
    for line in _by_day(store, made):
        yield _used(made.tenant, line)
    for late in made.late:
        yield _used(made.tenant, _Used.of(late)) | _class(corrects=late.month <= billed_until)
    billed_until_ms = month_ms(billed_until)[1] if billed_until else 0
    corrected = _called_before(store, made.adjustments, billed_until_ms)
    for each in made.adjustments:
        yield _adjusted(made.tenant, each) | _class(corrects=each.call_id in corrected)


class _Used(Struct, frozen=True):
    """Usage of a day, or of a month of which no more is known."""

    span_ms: tuple[int, int]
    project: str
    key: str
    model: str
    tier: str
    counts: tuple[int, ...]
    """As gateway.invoice.COUNTS."""
    amount_nano_usd: int

    @classmethod
    def of(cls, line: Line) -> _Used:
        counts = tuple(getattr(line, each) for each in COUNTS)
        return cls(
            month_ms(line.month), line.project, "", line.model, line.tier, counts, line.amount_nano_usd
        )


def _by_day(store: Store, made: Invoice) -> Iterator[_Used]:
    """The usage of the month. Of an invoice it is what has been billed, which may not be all that there is by now."""
    question = Question(*month_ms(made.month), _BY, {"tenant": made.tenant}, "group")
    found: dict[tuple[str, ...], list[_Used]] = {}
    for total in store.usage(question):
        day, project, key, model, tier = total.group
        start_ms, sums = ms(datetime.fromisoformat(day).replace(tzinfo=UTC)), total.sums
        span, counts = (start_ms, start_ms + DAY_MS), tuple(getattr(sums, each) for each in COUNTS)
        one = _Used(span, project, key, model, tier, counts, sums.charge_nano_usd)
        found.setdefault((project, model, tier), []).append(one)
    if made.number is None:
        for days in found.values():
            yield from days
        return
    for line in made.lines:
        days, billed = found.get((line.project, line.model, line.tier), []), _Used.of(line)
        counts = tuple(map(sum, zip(*(each.counts for each in days), strict=True)))
        amount = sum(each.amount_nano_usd for each in days)
        yield from days if (counts, amount) == (billed.counts, billed.amount_nano_usd) else [billed]


def _used(tenant: str, used: _Used) -> dict[str, Any]:
    calls, prompt, cached, completion, reasoning = used.counts
    named = {"key": used.key, "project": used.project, "tier": used.tier}
    start_ms, end_ms = used.span_ms
    return {
        **_costs(used.amount_nano_usd),
        **_whose(tenant, used.project),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{used.model}, tier {used.tier}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _moment(start_ms),
        "ChargePeriodEnd": _moment(end_ms),
        "ConsumedQuantity": prompt + completion,
        "ConsumedUnit": "Tokens",
        "PricingCategory": "Standard",
        "PricingQuantity": prompt + completion,
        "PricingUnit": "Tokens",
        "ResourceId": used.model,
        "ResourceName": used.model,
        "ResourceType": "Model",
        "SkuId": used.model,
        "SkuPriceId": f"{used.model}/{used.tier}",
        "Tags": json.dumps({name: value for name, value in named.items() if value}, sort_keys=True),
        "x_Calls": calls,
        "x_PromptTokens": prompt,
        "x_CachedTokens": cached,
        "x_CompletionTokens": completion,
        "x_ReasoningTokens": reasoning,
    }


def _adjusted(tenant: str, moved: Movement) -> dict[str, Any]:
    category, words = _BEING[moved.kind]
    start_ms = moved.time_ms - moved.time_ms % 1000
    return {
        **_costs(moved.amount_nano_usd),
        **_whose(tenant, ""),
        "ChargeCategory": category,
        "ChargeDescription": " ".join(each for each in (words, moved.call_id, moved.note) if each),
        "ChargeFrequency": "One-Time",
        "ChargePeriodStart": _moment(start_ms),
        "ChargePeriodEnd": _moment(start_ms + 1000),
        "Tags": json.dumps({"transaction": moved.id}),
    }


def _called_before(store: Store, moved: Sequence[Movement], time_ms: int) -> set[str | None]:
    """The calls of which a charge has been taken back that was on an invoice before."""
    ids = [each.call_id for each in moved if each.call_id is not None]
    query = select(USAGE.c.call_id).where(USAGE.c.call_id.in_(ids), USAGE.c.time_ms < time_ms)
    if not ids or not time_ms:
        return set()
    with store.reading() as connection:
        return set(connection.execute(query).scalars())


def _class(*, corrects: bool) -> dict[str, str]:
    """Whether it corrects a billing period that has been invoiced."""
    return {"ChargeClass": "Correction" if corrects else ""}


def _costs(nano_usd: int) -> dict[str, str]:
    sign, whole = "-" if nano_usd < 0 else "", abs(nano_usd)
    exact = f"{sign}{whole // 10**9}.{whole % 10**9:09d}"
    return dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), exact)


def _whose(tenant: str, project: str) -> dict[str, str]:
    return {
        "BillingAccountId": tenant,
        "BillingAccountName": tenant,
        "SubAccountId": project and f"{tenant}/{project}",
        "SubAccountName": project,
    }


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
