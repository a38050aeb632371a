"""Three accounts of the same calls, held against each other: what clients were told, what the ledger has, what workers
have counted.

Each call has an id that its client chose, so this goes call by call and to the token. An answered call has one row, with
the usage that its client was told and the charge for it; one that was refused has none; no row and no work of a worker is
of a call that nobody made. Where one endpoint alone has answered, it has counted the same. Where several worked for a call,
each has counted what its shares say, unless it was killed, or given up before it had told: what it had done by then is
estimated in the ledger, and marked so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import func, select

from gateway.billing import balances
from gateway.ledger import amount_nano_usd
from gateway.ledger_tables import LEDGER_ENTRIES
from gateway.tables import SHARES, USAGE
from loadtest.sample import OK
from routing.types import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.store import Store
    from loadtest.simworker.account import Worked
    from loadtest.witness import Seen
    from routing.types import Price


class Called(Struct, frozen=True):
    """A call, by whom, and what came of it."""

    tenant: str
    request_id: str
    began_ms: int
    seen: Seen
    left: bool = False
    """Its client did not wait for all of the answer."""


class Totals(Struct):
    """Tokens, prompt and answer together, of the answered calls."""

    clients: int = 0
    ledger: int = 0
    workers: int = 0
    """Of those calls that one worker alone has answered."""
    ledger_of_those: int = 0


class Reckoning(Struct, frozen=True):
    rows: int
    alone: int
    """Answered calls that one worker alone worked for: compared with what it counted."""
    shared: int
    """That several did."""
    shares: int
    """Of those: pieces of work that were compared with what a worker counted."""
    estimated: int
    """And that were not, the worker having been killed or left before it had told."""
    tokens: Totals
    charged_nano_usd: dict[str, int]
    """By tenant."""
    wrong: tuple[str, ...]


class Books(Struct, frozen=True):
    """What the database has."""

    rows: list[Any]
    shares: dict[str, list[Any]]
    """By call."""
    owed_nano_usd: dict[str, int]
    """By tenant, as the accounts of the ledger stand."""
    unbalanced: tuple[str, ...]


def books_of(store: Store) -> Books:
    with store.reading() as connection:
        rows = list(connection.execute(select(USAGE)))
        shares = defaultdict(list)
        for share in connection.execute(select(SHARES).order_by(SHARES.c.call_id, SHARES.c.number)):
            shares[share.call_id].append(share)
        sums = select(LEDGER_ENTRIES.c.account, func.sum(LEDGER_ENTRIES.c.amount_nano_usd))
        entered = {
            name: int(sum_) for name, sum_ in connection.execute(sums.group_by(LEDGER_ENTRIES.c.account))
        }
    kept = balances(store)
    unbalanced = [
        f"account {name} does not stand at its entries" for name in entered if kept.get(name) != entered[name]
    ]
    if sum(entered.values()):
        unbalanced.append("the entries do not sum to zero")
    owed = {
        name.removeprefix("tenant:"): amount for name, amount in kept.items() if name.startswith("tenant:")
    }
    return Books(rows, dict(shares), owed, tuple(unbalanced))


def reckoned(
    calls: Sequence[Called], books: Books, work: Iterable[tuple[int, Worked]], price: Price
) -> Reckoning:
    return _Reckoner(calls, books, work, price).reckoned()


class _Reckoner:
    def __init__(
        self, calls: Sequence[Called], books: Books, work: Iterable[tuple[int, Worked]], price: Price
    ) -> None:
        self._calls = calls
        self._books = books
        self._price = price
        self._rows: dict[str, list[Any]] = defaultdict(list)
        for row in books.rows:
            self._rows[row.request_id].append(row)
        self._work: dict[tuple[str, str], list[Worked]] = defaultdict(list)
        """By call and endpoint."""
        for port, worked in work:
            if worked.request_id:  # probes have none
                self._work[worked.request_id, f"127.0.0.1:{port}"].append(worked)
        self._wrong: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._tokens = Totals()
        self._alone = self._shared = self._shares = self._estimated = 0

    def reckoned(self) -> Reckoning:
        for call in self._calls:
            self._of_client(call)
        made = {call.request_id for call in self._calls}
        for request_id in self._rows.keys() - made:
            self._note("rows of calls that nobody made", request_id)
        for request_id, endpoint in self._work:
            if not any(endpoint in self._endpoints(row) for row in self._rows.get(request_id, ())):
                self._note("calls that a worker worked for, and the ledger does not know it", request_id)
        charged: Counter[str] = Counter()
        for row in self._books.rows:
            charged[row.tenant] += row.charge_nano_usd
        for tenant in charged.keys() | self._books.owed_nano_usd.keys():
            if charged[tenant] != self._books.owed_nano_usd.get(tenant, 0):
                self._note("tenants that do not owe what their calls are charged", tenant)
        for what in self._books.unbalanced:
            self._note(what, "")
        return Reckoning(
            rows=len(self._books.rows),
            alone=self._alone,
            shared=self._shared,
            shares=self._shares,
            estimated=self._estimated,
            tokens=self._tokens,
            charged_nano_usd=dict(charged),
            wrong=tuple(f"{number} {what} ({self._examples[what]})" for what, number in self._wrong.items()),
        )

    def _note(self, what: str, example: str) -> None:
        self._wrong[what] += 1
        self._examples.setdefault(what, example)

    def _endpoints(self, row: Any) -> set[str]:
        return {row.endpoint, *(share.endpoint for share in self._books.shares.get(row.call_id, ()))}

    def _of_client(self, call: Called) -> None:
        rows, seen = self._rows.get(call.request_id, []), call.seen
        if len(rows) > 1:
            self._note("calls with more than one row", call.request_id)
        elif seen.outcome.startswith("status 429") and rows:
            self._note("calls that were refused and have a row", call.request_id)
        elif seen.outcome == OK and not rows:
            self._note("answered calls without a row", call.request_id)
        elif seen.outcome == OK and seen.reply.usage is not None:
            self._answered(call, rows[0], seen.reply.usage)

    def _answered(self, call: Called, row: Any, told: tuple[int, int, int]) -> None:
        self._tokens.clients += told[0] + told[2]
        self._tokens.ledger += row.prompt_tokens + row.completion_tokens
        if (row.outcome, row.status, row.tenant) != (OK, 200, call.tenant):
            self._note(f"answered calls booked as {row.outcome}", call.request_id)
        elif _tokens(row) != told:
            self._note("calls whose row has other tokens than their clients were told", call.request_id)
        elif row.charge_nano_usd != amount_nano_usd(self._price, Usage(*told)):
            self._note("calls charged wrongly", call.request_id)
        if row.call_id in self._books.shares:
            self._shared += 1
            self._of_shares(call, self._books.shares[row.call_id])
        else:
            self._of_one(call, row)

    def _of_one(self, call: Called, row: Any) -> None:
        self._alone += 1
        finished = self._finished(call.request_id, row.endpoint)
        self._tokens.ledger_of_those += row.prompt_tokens + row.completion_tokens
        self._tokens.workers += sum(each.prompt_tokens + each.completion_tokens for each in finished)
        if [_tokens(each) for each in finished] != [_tokens(row)]:
            self._note("calls of which their worker has counted something else", call.request_id)

    def _of_shares(self, call: Called, shares: Sequence[Any]) -> None:
        for endpoint in {share.endpoint for share in shares}:
            mine = [share for share in shares if share.endpoint == endpoint]
            finished = self._finished(call.request_id, endpoint)
            if not finished or any(share.estimated for share in mine):
                self._estimated += 1
                continue
            self._shares += 1
            said = [sum(each) for each in zip(*map(_tokens, mine), strict=True)]
            counted = [sum(each) for each in zip(*map(_tokens, finished), strict=True)]
            if said != counted:
                self._note("shares of which their worker has counted something else", call.request_id)

    def _finished(self, request_id: str, endpoint: str) -> list[Worked]:
        return [each for each in self._work.get((request_id, endpoint), ()) if each.ended == "finished"]


def _tokens(counted: Any) -> tuple[int, int, int]:
    return counted.prompt_tokens, counted.cached_tokens, counted.completion_tokens
