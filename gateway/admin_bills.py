"""The routes of bills: invoices of tenants, statements of nodes, FOCUS exports, providers' invoices, and prices over time."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response
from msgspec import structs
from pydantic import BaseModel, Field

from gateway import focus
from gateway.bills import MEDIA_TYPES, InvoiceShown, StatementShown, rendered, with_usd
from gateway.config_section import usd_per_million
from gateway.errors import ApiError
from gateway.invoice import Invoice, Statement, statement
from gateway.issuing import Issued, invoice, issue, issued
from gateway.output import BillFormat, iso, usd
from gateway.prices import Kind, Version, versions
from gateway.reconcile import BadInvoice, compare, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.desk import Desk

_Made = TypeVar("_Made")
_MOST_BYTES = 16_000_000
"""Of a provider's invoice."""
Format = Annotated[Literal["json", "csv", "pdf"], Query(alias="format", description="How it is written.")]
Names = Annotated[
    list[str], Query(alias="name", description="THEIRS=OURS, of a model that is called otherwise there.")
]
_CSV: dict[int | str, Any] = {200: {"content": {"text/csv": {}}}}
_BILL: dict[int | str, Any] = {200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}}}
_UPLOAD = {"requestBody": {"required": True, "content": {"text/csv": {"schema": {"type": "string"}}}}}


class IssuedShown(BaseModel):
    number: str
    tenant: str
    month: str
    issued: str
    total_nano_usd: int
    total_usd: str
    closing_nano_usd: int
    closing_usd: str

    @classmethod
    def of(cls, one: Issued) -> IssuedShown:
        return cls.model_validate({**with_usd(structs.asdict(one)), "issued": iso(one.issued_ms)})


class InvoicesShown(BaseModel):
    data: list[IssuedShown]
    after: str | None = Field(None, description="Ask for what follows with this; null: this is the end.")


class ComparedShown(BaseModel):
    """A day and model."""

    day: str
    model: str
    billed_usd: str | None = Field(description="Null: the invoice has no such line.")
    ledger_usd: str | None = Field(description="Null: no call has been made there.")
    difference_usd: str = Field(description="What is billed beyond what the ledger has.")


class ComparedLines(BaseModel):
    data: list[ComparedShown]


class PriceShown(BaseModel):
    """In force until the next one for the same. USD per million tokens."""

    kind: str = Field(
        description="`charge` of a model, `cost` of an endpoint, multiplier of a `tier` or `tenant`."
    )
    name: str
    endpoint: str
    since: str
    input: str | None
    output: str | None
    cached_input: str | None
    reasoning: str | None
    multiplier: str | None

    @classmethod
    def of(cls, version: Version) -> PriceShown:
        priced, rates = version.priced, version.rates

        def shown(millionths: int | None) -> str | None:
            return None if millionths is None else usd_per_million(millionths)

        return cls(
            kind=priced.kind,
            name=priced.name,
            endpoint=priced.endpoint,
            since=iso(version.valid_from_ms),
            input=shown(rates.input_pico_usd),
            output=shown(rates.output_pico_usd),
            cached_input=shown(rates.cached_input_pico_usd),
            reasoning=shown(rates.reasoning_pico_usd),
            multiplier=shown(rates.millionths),
        )


class PricesShown(BaseModel):
    data: list[PriceShown]


def bill_routes(desk: Desk) -> APIRouter:
    """To be mounted where only administrators are let in."""
    routes = APIRouter()
    _add_invoices(routes, desk)
    _add_statements(routes, desk)
    _add_reconciling(routes, desk)
    _add_prices(routes, desk)
    return routes


def _add_invoices(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/billing/invoices")
    async def list_invoices(
        tenant: str | None = None,
        after: str = "",
        most: Annotated[int, Query(ge=1, le=1000, description="Most of them at once.")] = 100,
    ) -> InvoicesShown:
        """Those that have been issued, by number."""
        found = await _made(lambda: issued(desk.store, tenant, after, most + 1))
        shown = [IssuedShown.of(each) for each in found[:most]]
        return InvoicesShown(data=shown, after=shown[-1].number if len(found) > most else None)

    @routes.get("/billing/invoices/{tenant}/{month}", response_model=InvoiceShown, responses=_BILL)
    async def get_invoice(tenant: str, month: str, as_format: Format = "json") -> Response:
        """Of a month such as 2026-01: as it was issued, or a draft, which has no number."""
        return await _bill(lambda: invoice(desk.store, tenant, month), as_format)

    @routes.post(
        "/billing/invoices/{tenant}/{month}", status_code=201, response_model=InvoiceShown, responses=_BILL
    )
    async def issue_invoice(
        tenant: str, month: str, request: Request, as_format: Format = "json"
    ) -> Response:
        """Give it its number, once: 201 where it is new, 200 where it was there already. It never changes again."""
        actor = desk.actor_of(request)
        made, new = await _made(lambda: issue(desk.store, tenant, month, actor))
        return await _bill(lambda: made, as_format, 201 if new else 200)


def _add_statements(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/billing/payouts/{node:path}/{month}", response_model=StatementShown, responses=_BILL)
    async def get_statement(node: str, month: str, as_format: Format = "json") -> Response:
        """What a node has earned in a month, and been paid."""
        return await _bill(lambda: statement(desk.store, node, month), as_format)

    @routes.get("/billing/focus/{month}", response_class=Response, responses=_CSV)
    async def export_focus(
        month: str,
        tenant: Annotated[str | None, Query(description="Only of this one.")] = None,
        issuer: Annotated[str, Query(description="Who bills.")] = "Tidegate",
        *,
        validator_names: Annotated[
            bool, Query(description="Columns named as focus-validator 1.0.0 wants them.")
        ] = False,
    ) -> Response:
        """The charges of a billing period, a month, as a FOCUS 1.0 CSV with the invoices that they are on."""

        def written() -> str:
            text = io.StringIO()
            names = focus.VALIDATOR_NAMES if validator_names else {}
            columns = (*focus.COLUMNS, focus.VALIDATOR_TYPE) if validator_names else focus.COLUMNS
            writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
            writer.writerow({column: names.get(column, column) for column in columns})
            for row in focus.rows(desk.store, month, issuer, tenant):
                writer.writerow({**row, focus.VALIDATOR_TYPE: row["ChargeCategory"]})
            return text.getvalue()

        return Response(await _made(written), media_type=MEDIA_TYPES[BillFormat.CSV])


def _add_reconciling(routes: APIRouter, desk: Desk) -> None:
    @routes.post("/billing/reconcile/{endpoint:path}", openapi_extra=_UPLOAD)
    async def reconcile(endpoint: str, request: Request, names: Names = []) -> ComparedLines:  # noqa: B006 - FastAPI copies it
        """A provider's invoice, sent as a CSV of day, model and amount, beside what the ledger has at that endpoint."""
        body = await request.body()
        if len(body) > _MOST_BYTES:
            raise ApiError("request_too_large", f"An invoice may have {_MOST_BYTES} bytes.")
        ours = dict(each.split("=", 1) for each in names if "=" in each)

        def compared() -> list[ComparedShown]:
            found = compare(desk.store, endpoint, read(io.StringIO(body.decode("utf-8-sig"))), ours)
            return [
                ComparedShown(
                    day=each.day,
                    model=each.model,
                    billed_usd=None
                    if each.billed_nano_usd is None
                    else f"{each.billed_nano_usd.scaleb(-9):f}",
                    ledger_usd=None if each.ledger_nano_usd is None else usd(each.ledger_nano_usd),
                    difference_usd=f"{each.difference_nano_usd.scaleb(-9):f}",
                )
                for each in found
            ]

        return ComparedLines(data=await _made(compared))


def _add_prices(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/prices")
    async def prices(
        kind: Kind | None = None,
        name: Annotated[str | None, Query(description="Of a model, a tier or a tenant.")] = None,
        endpoint: Annotated[str | None, Query(description="Only costs there.")] = None,
    ) -> PricesShown:
        """All that have ever been in force, the oldest first."""
        wanted = {"kind": kind, "name": name, "endpoint": endpoint}
        found = await asyncio.to_thread(versions, desk.store)
        return PricesShown(
            data=[
                PriceShown.of(each)
                for each in found
                if all(value in {None, getattr(each.priced, field)} for field, value in wanted.items())
            ]
        )


async def _bill(made: Callable[[], Invoice | Statement], as_format: str, status_code: int = 200) -> Response:
    wanted = BillFormat(as_format)
    content = await _made(lambda: rendered(made(), wanted))
    return Response(content, status_code, media_type=MEDIA_TYPES[wanted])


async def _made(work: Callable[[], _Made]) -> _Made:
    """What comes of it, in a thread. A ValueError says what is wrong with what was asked."""
    try:
        return await asyncio.to_thread(work)
    except UnicodeDecodeError:
        raise ApiError("invalid_value", "This is no UTF-8 text.") from None
    except (ValueError, BadInvoice) as error:
        raise ApiError("invalid_value", str(error)) from None
