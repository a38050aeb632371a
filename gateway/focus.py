"""Usage and money as FOCUS rows, the FinOps Foundation's format for bills: version 1.0, which its public validator knows.

A row is the usage of one day by a tenant's project, key, model and tier, or one credit, refund or correction. Costs are what
the tenant owes; payments are no charges and have no row. The sum of BilledCost over a month is its invoices' total.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from gateway.bookkeeping import DAY_MS
from gateway.ledger_tables import LEDGER_ENTRIES, LEDGER_TRANSACTIONS
from gateway.spans import month_ms, ms
from gateway.usage_totals import Question

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.store import Store
    from gateway.usage_totals import Grouping, Total

COLUMNS = (
    *("AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription"),
    *("ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountCategory"),
    *("CommitmentDiscountId", "CommitmentDiscountName", "CommitmentDiscountStatus", "CommitmentDiscountType"),
    *("ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost"),
    *("InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit"),
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

_BY: tuple[Grouping, ...] = ("day", "tenant", "project", "key", "model", "tier")
_PAGE = 5000
_BEING = {
    "credit": ("Credit", "Given by the operator"),
    "refund": ("Adjustment", "Refund of the call"),
    "correction": ("Adjustment", "Correction"),
}


def rows(store: Store, month: str, issuer: str, tenant: str | None = None) -> Iterator[dict[str, Any]]:
    """All charges of a month, of one tenant or of all. Raises ValueError where it is none."""
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
    only: dict[Grouping, str | tuple[str, ...]] = {} if tenant is None else {"tenant": tenant}
    after: tuple[str, ...] | None = None
    while True:
        page = store.usage(Question(start_ms, end_ms, _BY, only, "group", after, _PAGE))
        for total in page:
            yield dict.fromkeys(COLUMNS, "") | alike | _used(total)
        if len(page) < _PAGE:
            break
        after = page[-1].group
    for row in _adjusted(store, start_ms, end_ms, tenant):
        yield dict.fromkeys(COLUMNS, "") | alike | row


def _used(total: Total) -> dict[str, Any]:
    day, tenant, project, key, model, tier = total.group
    sums, start_ms = total.sums, ms(datetime.fromisoformat(day).replace(tzinfo=UTC))
    tokens = sums.prompt_tokens + sums.completion_tokens
    tags = {"key": key, "tier": tier} | ({"project": project} if project else {})
    return {
        **_costs(sums.charge_nano_usd),
        **_whose(tenant, project),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{model}, tier {tier}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _moment(start_ms),
        "ChargePeriodEnd": _moment(start_ms + DAY_MS),
        "ConsumedQuantity": tokens,
        "ConsumedUnit": "Tokens",
        "PricingCategory": "Standard",
        "PricingQuantity": tokens,
        "PricingUnit": "Tokens",
        "ResourceId": model,
        "ResourceName": model,
        "ResourceType": "Model",
        "SkuId": model,
        "SkuPriceId": f"{model}/{tier}",
        "Tags": json.dumps(tags, sort_keys=True),
        "x_Calls": sums.calls,
        "x_PromptTokens": sums.prompt_tokens,
        "x_CachedTokens": sums.cached_tokens,
        "x_CompletionTokens": sums.completion_tokens,
        "x_ReasoningTokens": sums.reasoning_tokens,
    }


def _adjusted(store: Store, start_ms: int, end_ms: int, tenant: str | None) -> Iterator[dict[str, Any]]:
    query = (
        select(LEDGER_TRANSACTIONS, LEDGER_ENTRIES.c.account, LEDGER_ENTRIES.c.amount_nano_usd)
        .join(LEDGER_ENTRIES, LEDGER_ENTRIES.c.transaction_id == LEDGER_TRANSACTIONS.c.id)
        .where(
            LEDGER_TRANSACTIONS.c.kind != "call",
            LEDGER_TRANSACTIONS.c.kind.in_(_BEING),
            LEDGER_TRANSACTIONS.c.time_ms >= start_ms,
            LEDGER_TRANSACTIONS.c.time_ms < end_ms,
            LEDGER_ENTRIES.c.account.like("tenant:%" if tenant is None else f"tenant:{tenant}"),
        )
        .order_by(LEDGER_TRANSACTIONS.c.time_ms, LEDGER_TRANSACTIONS.c.id)
    )
    with store.reading() as connection:
        found = connection.execute(query).all()
    for row in found:
        whose = row.account.removeprefix("tenant:")
        if tenant not in {None, whose}:
            continue  # LIKE takes _ for any character
        category, words = _BEING[row.kind]
        yield {
            **_costs(row.amount_nano_usd),
            **_whose(whose, ""),
            "ChargeCategory": category,
            "ChargeDescription": " ".join(each for each in (words, row.call_id, row.note) if each),
            "ChargeFrequency": "One-Time",
            "ChargePeriodStart": _moment(row.time_ms - row.time_ms % 1000),
            "ChargePeriodEnd": _moment(row.time_ms - row.time_ms % 1000 + 1000),
            "Tags": json.dumps({"transaction": row.id}),
        }


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
