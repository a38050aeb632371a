"""Tells webhooks of usage: in the order in which it was recorded, again and again until each has it.

What has been sent counts once the receiver has said 2xx and the database knows; a process that dies between the two sends
the same events, under the same ids, once more. Where a receiver takes single events, those of different tenants are sent
beside each other, and those of one tenant one after the other.

    2xx                      it has them
    400, 409, 413, 422       it will not have one of them: found by halving, and set aside
    anything else, nothing   it cannot have any now: later, the first of them first
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import ssl
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpx2
from msgspec import Struct

from backends.rounds import rounds
from gateway.database import StoreAway
from gateway.event_shapes import Event, seems_json, shape_of, signature
from gateway.event_store import Failure, Item, Outbox, Outcome, Refusal
from gateway.telemetry_events import EventsCollector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from prometheus_client import CollectorRegistry

    from gateway.config_events import WebhookSection
    from gateway.event_store import Told, Window
    from gateway.store import Store

log = logging.getLogger(__name__)

LOOK_S = 1.0
SINGLES = 100
"""Of single events, how many are taken at once; and how many are under way beside each other."""
ABREAST = 8
LONGEST_PAUSE_S = 300.0
LONGEST_RETRY_AFTER_S = 86_400.0
_SPARE_S = 5.0
"""A lease is so much longer than a request may take."""
_REPLY_BYTES = 1 << 20
_REFUSING = frozenset({400, 409, 413, 422})
_CRASHES = 10
"""A single event on which a receiver fails with a 500 so often in a row is set aside as well."""


class _Unreached(Exception):
    """The receiver has taken nothing, for no fault of the events."""

    def __init__(self, why: str, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.why = why
        """For the metric: a status, timeout, unreachable or not_json."""
        self.retry_after_s = retry_after_s


class _LeaseLost(Exception):
    """Another gateway tells this webhook now."""


class _Sent(Struct):
    """What has become of the events of a window so far."""

    has: set[str]
    refused: dict[str, str]
    """Reasons, by the event's id."""

    def settled(self, event: Event) -> bool:
        return event.id in self.has or event.id in self.refused


class Sender:
    """Tells one webhook."""

    def __init__(
        self, name: str, section: WebhookSection, outbox: Outbox, client: httpx2.AsyncClient
    ) -> None:
        self.name = name
        self.failures: Counter[str] = Counter()
        """Requests that failed, by why."""
        self.sent = self.refused = 0
        self._section = section
        self._shape = shape_of(section)
        self._outbox = outbox
        self._client = client
        self._most = self._shape.batch
        self._lease_s = section.timeout_s + _SPARE_S
        self._lease_ends_s = 0.0
        self._renewing = asyncio.Lock()
        self._before = _Sent(set(), {})
        """Of the window that was not got through: what the receiver has of it need not be sent again."""

    def working(self) -> AbstractAsyncContextManager[None]:
        return rounds(lambda _: self.work(), LOOK_S, f"telling {self.name} of usage")

    async def work(self) -> None:
        """Tell it all that there is, until something fails or another gateway is at it."""
        try:
            while await asyncio.to_thread(self._outbox.due, self.name) and await self._step():
                pass
        except StoreAway as failure:
            log.warning("events for %s wait for the database: %s", self.name, failure)
        except _LeaseLost:
            self._before = _Sent(set(), {})
            log.warning("events for %s: another gateway has taken over", self.name)

    async def _step(self) -> bool:
        """Whether to go on."""
        most = SINGLES if self._shape.batch == 1 else self._most
        started_s = time.monotonic()
        window = await asyncio.to_thread(self._outbox.take, self.name, self._lease_s, most)
        if window is None:
            return False
        self._lease_ends_s = started_s + self._lease_s
        events, refused = self._events(window)
        sent = self._before
        failure = await self._send(events, sent, window.attempts)
        outcome = self._outcome(window, events, refused, sent, failure)
        if not await asyncio.to_thread(self._outbox.settle, self.name, outcome, self._lease_s):
            raise _LeaseLost
        # Of what is not done with, it is remembered what the receiver has.
        kept = {event.id for item, event in events if outcome.place is None or item.after > outcome.place}
        self._before = _Sent(sent.has & kept, {})
        self._report(window, outcome)
        return failure is None

    def _events(self, window: Window) -> tuple[list[tuple[Item, Event]], list[Refusal]]:
        events: list[tuple[Item, Event]] = []
        refused: list[Refusal] = []
        for told in window.told:
            if told.fact is None:
                continue
            customer = self._customer(told)
            found = self._shape.events(told.fact, customer or told.fact.tenant)
            found = [event for event in found if told.item.part in (None, event.part)]
            if customer is None:
                why = f"the tenant has no metadata {self._section.resolved_customer_from}"
                refused += [Refusal(told.item, event.part, event.tenant, why) for event in found]
            elif customer:
                events += [(told.item, event) for event in found]
        return events, refused

    def _customer(self, told: Told) -> str | None:
        """What the tenant is called there. "": it is not known there, on purpose; None: nobody has said."""
        field = self._section.resolved_customer_from
        if told.fact is None or (told.metadata is None and field is not None):
            return ""  # calls with the master key, or without any
        if field is None:
            return told.fact.tenant
        return (told.metadata or {}).get(field)

    async def _send(
        self, events: Sequence[tuple[Item, Event]], sent: _Sent, attempts: int
    ) -> _Unreached | None:
        """Send what has not been sent. What kept some of it from being sent."""
        lanes: dict[str, list[Event]] = {}
        for _, event in events:
            if not sent.settled(event):
                lanes.setdefault(event.tenant if self._shape.batch == 1 else "", []).append(event)
        abreast = asyncio.Semaphore(ABREAST)
        first = next((event.id for _, event in events if not sent.settled(event)), None)
        suspect = first if attempts + 1 >= _CRASHES else None

        async def send(lane: list[Event]) -> None:
            async with abreast:
                for start in range(0, len(lane), self._most):
                    await self._deliver(lane[start : start + self._most], sent, suspect)

        found = await asyncio.gather(*map(send, lanes.values()), return_exceptions=True)
        failures = [each for each in found if isinstance(each, BaseException)]
        for each in failures:
            if not isinstance(each, _Unreached):
                raise each
        unreached = [each for each in failures if isinstance(each, _Unreached)]
        if not unreached:
            self._most = min(2 * self._most, self._shape.batch)
            return None
        self._most = max(1, self._most // 2)
        return max(unreached, key=lambda each: each.retry_after_s)

    async def _deliver(self, events: Sequence[Event], sent: _Sent, suspect: str | None) -> None:
        try:
            said = await self._ask(events)
        except _Unreached as failure:
            if failure.why == "500" and [event.id for event in events] == [suspect]:
                sent.refused[events[0].id] = f"{failure}, {_CRASHES} times in a row"
            raise
        for place, reason in said.items():
            if reason:
                sent.refused[events[place].id] = reason
            else:
                sent.has.add(events[place].id)
        rest = [event for event in events if not sent.settled(event)]
        if len(rest) == len(events):
            half = len(rest) // 2
            await self._deliver(rest[:half], sent, suspect)
            rest = rest[half:]
        if rest:
            await self._deliver(rest, sent, suspect)

    async def _ask(self, events: Sequence[Event]) -> dict[int, str]:
        """What the receiver says of them, by their places: "" of those that it has. Raises _Unreached, _LeaseLost."""
        await self._keep_lease()
        section, request = self._section, self._shape.request(events)
        headers = {"content-type": request.content_type, "user-agent": "tidegate"}
        if section.api_key is not None:
            headers["authorization"] = f"Bearer {section.api_key.get_secret_value()}"
        if section.secrets:
            secret_texts = [secret.get_secret_value() for secret in section.secrets]
            headers |= signature(secret_texts, request, int(time.time()))
        try:
            async with (
                asyncio.timeout(section.timeout_s),
                self._client.stream("POST", section.url, content=request.body, headers=headers) as reply,
            ):
                body = b""
                async for piece in reply.aiter_bytes():
                    body += piece
                    if len(body) >= _REPLY_BYTES:
                        break
        except (TimeoutError, httpx2.TimeoutException):
            raise self._unreached("timeout", f"no reply within {section.timeout_s:g} s") from None
        except (httpx2.HTTPError, OSError) as error:
            raise self._unreached("unreachable", str(error) or type(error).__name__) from None
        if reply.is_success:
            if self._shape.replies_in_json and not seems_json(body):
                raise self._unreached(
                    "not_json", "a 2xx without JSON is not the receiver's: is the url right?"
                )
            return dict.fromkeys(range(len(events)), "")
        if reply.status_code in _REFUSING and not (section.shape == "stripe" and reply.status_code == 409):
            return self._shape.settled(reply.status_code, body, len(events))
        reason = f"the receiver says {reply.status_code} {reply.reason_phrase}".strip()
        raise self._unreached(str(reply.status_code), reason, _retry_after_s(reply.headers))

    def _unreached(self, why: str, reason: str, retry_after_s: float = 0.0) -> _Unreached:
        self.failures[why] += 1
        return _Unreached(why, reason, retry_after_s)

    async def _keep_lease(self) -> None:
        """It lasts longer than the next request can take."""
        async with self._renewing:
            if self._lease_ends_s - time.monotonic() > self._section.timeout_s:
                return
            started_s = time.monotonic()
            if not await asyncio.to_thread(self._outbox.renew, self.name, self._lease_s):
                raise _LeaseLost
            self._lease_ends_s = started_s + self._lease_s

    def _outcome(
        self,
        window: Window,
        events: Sequence[tuple[Item, Event]],
        refused: Sequence[Refusal],
        sent: _Sent,
        failure: _Unreached | None,
    ) -> Outcome:
        """As far as all is done with, from the beginning."""
        open_items = [item.after for item, event in events if not sent.settled(event)]
        stop = min(open_items, default=None)
        done = [told.item.after for told in window.told if stop is None or told.item.after < stop]
        place = max(done, default=None)
        through = [(item, event) for item, event in events if place is not None and item.after <= place]
        aside = [each for each in refused if place is not None and each.item.after <= place]
        aside += [
            Refusal(item, event.part, event.tenant, sent.refused[event.id])
            for item, event in through
            if event.id in sent.refused
        ]
        pause = None
        if failure is not None:
            attempts = 0 if done else window.attempts
            pause_s = min(2.0**attempts, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            pause = Failure(str(failure), max(pause_s, failure.retry_after_s))
        has = sum(event.id in sent.has for _, event in through)
        return Outcome(place, has, tuple(aside), pause)

    def _report(self, window: Window, outcome: Outcome) -> None:
        self.sent += outcome.sent
        self.refused += len(outcome.refused)
        if outcome.refused:
            first = outcome.refused[0]
            log.error(
                "set aside for %s, events: %d; the first, %s of %s: %s",
                *(self.name, len(outcome.refused), first.item.id, first.tenant, first.reason),
            )
        if outcome.failure is not None and (window.attempts == 0 or outcome.place is not None):
            log.warning("events for %s wait: %s", self.name, outcome.failure.reason)
        elif outcome.failure is None and window.attempts:
            log.info("events for %s go on", self.name)


def _retry_after_s(headers: httpx2.Headers) -> float:
    text = headers.get("retry-after", "")
    try:
        after_s = float(text)
    except ValueError:
        try:
            after_s = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(after_s, 0.0), LONGEST_RETRY_AFTER_S)  # a NaN is below zero here


@asynccontextmanager
async def telling(
    webhooks: Mapping[str, WebhookSection], store: Store, registry: CollectorRegistry
) -> AsyncIterator[None]:
    """Tell the webhooks while the block runs. Raises StoreAway."""
    collector = EventsCollector(store)
    registry.register(collector)
    if not webhooks:
        yield
        return
    outbox = Outbox(store, secrets.token_hex(16))
    for other in await asyncio.to_thread(outbox.register, webhooks):
        log.warning("events for %s wait, who is not configured here: tidegate events forget %s", other, other)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_release, outbox)
        for name, section in webhooks.items():
            verify = True if section.ca_file is None else ssl.create_default_context(cafile=section.ca_file)
            client = httpx2.AsyncClient(verify=verify, timeout=section.timeout_s)
            sender = Sender(name, section, outbox, await stack.enter_async_context(client))
            collector.senders.append(sender)
            await stack.enter_async_context(sender.working())
        await stack.enter_async_context(collector.looking())
        yield


async def _release(outbox: Outbox) -> None:
    try:
        await asyncio.to_thread(outbox.release)
    except StoreAway as failure:
        log.warning("other gateways have to wait until the leases on webhooks end: %s", failure)
