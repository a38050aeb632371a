"""One endpoint of the fleet and the way to it, and attempts at it.

Everything that happens to an endpoint comes back here through an `Attempt`, which is counted from the moment it is sent
until its block is left.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

from msgspec import structs

from backends.base import (
    AttemptFailed,
    CallRejected,
    ConnectFailed,
    LaneFull,
    Refused,
    Unable,
    Unsupported,
    conceal,
)
from backends.departure import Departure
from backends.keys import Keys
from backends.litellm_api import LiteLLMAccess, LiteLLMBackend
from backends.litellm_thread import LiteLLMThread
from backends.refusal import BUSY_RETRY_S
from backends.scrape import FRESH_S
from backends.worker import Access, HttpBackend, Outgoing, lane_to
from routing.pool import Pool, Standing

if TYPE_CHECKING:
    from backends.base import Backend, Reply
    from backends.fleet import FleetSettings
    from backends.kv_events import KvEvents
    from backends.lane import Lane
    from backends.probe import Probed, ProbeOutcome
    from backends.scrape import Scraped
    from routing.types import Call, Candidate, Endpoint, Usage

CONFIG = "config"
"""The source of what stands in the configuration."""
LANE_FULL_S = 0.25
"""How long an endpoint is left alone that has fewer calls than it may have and yet no connection left: a health check has
the last one."""

_NOT_READ = (LaneFull, Unsupported, Unable, ConnectFailed, Refused, CallRejected)
"""Where an attempt ends so before its first token, the endpoint has not begun to read the prompt."""


class Member(Standing):
    """One endpoint of the fleet: how it stands, and the way to it."""

    def __init__(
        self,
        endpoint: Endpoint,
        access: Access | LiteLLMAccess,
        settings: FleetSettings,
        pool: Pool,
        litellm: LiteLLMThread | None = None,
    ) -> None:
        super().__init__(endpoint, pool, settings.lane.connections)
        self.access = access
        self.declared = endpoint
        """As its source says; `endpoint` has in addition what it has said of itself."""
        self._own_context_tokens: int | None = None
        self.source = CONFIG
        self.keys = Keys(access.api_keys, endpoint.name)
        self._has_keys = len(self.keys) > 0
        self.lane: Lane | None = None
        """None where litellm has its own connections."""
        self.backend: Backend
        if isinstance(access, LiteLLMAccess):
            self.backend = LiteLLMBackend(access, litellm or LiteLLMThread(), settings.patience)
        else:
            self.lane = lane_to(access, settings.lane)
            root = "/v1" if endpoint.kind == "worker" else access.url.partition("://")[2].partition("/")[2]
            self.backend = HttpBackend(access, self.lane, "/" + root.strip("/"), settings.patience, self.keys)
        self.header_name = endpoint.name.encode()
        self.attempts: dict[str, int] = {}
        """How many ended, by outcome: ok, a failure's code, rejected (a 4xx of the call's own), abandoned (by us)."""
        self.checked = endpoint.kind != "worker"
        """Whether its health is known. A provider is not asked: that would cost money, and calls tell."""
        self.scraped: Scraped | None = None
        """What it last said of itself."""
        self.kv_events: KvEvents | None = None
        """Where it publishes them."""
        self.probes: Counter[ProbeOutcome] = Counter()
        """Ended so far, by outcome."""
        self.left = asyncio.Event()
        """Set when it is no member any more."""
        self._call_ended = asyncio.Event()
        self.departure = Departure(self)

    async def idle(self) -> None:
        """Wait until no call is under way there, once it has left."""
        while self.inflight:
            self._call_ended.clear()
            await self._call_ended.wait()

    def redeclare(self, endpoint: Endpoint) -> None:
        """Its source says something else of it."""
        self.declared = endpoint
        self._describe()

    def probed(self, found: Probed, now_s: float, roll: float) -> float:
        """A probe has found this; in how many seconds it is to be probed again where it failed."""
        self.probes[found.outcome] += 1
        failure = None if found.outcome == "ok" else found.detail
        pause_s = self.ejection.probed(now_s, failure, roll)
        if failure is None:
            self._own_context_tokens = found.context_tokens
            self._describe()
            self.ramp_up(now_s)
        self.changed()
        return pause_s

    def _describe(self) -> None:
        """As its source says, and where that says nothing, as itself does."""
        self.endpoint = self.declared
        if self.declared.context_tokens is None and self._own_context_tokens:
            self.endpoint = structs.replace(self.declared, context_tokens=self._own_context_tokens)
        self.changed()

    def looked_at(self, scraped: Scraped) -> None:
        """It has said this of itself."""
        before, self.scraped = self.scraped, scraped
        running = min(scraped.foreign_running, scraped.running)
        if scraped.foreign_running or (before is not None and before.foreign_running):
            waiting = scraped.foreign_running - running
            self.shared_with(running, waiting, scraped.at_s, scraped.at_s + FRESH_S)
        if scraped.kv_tokens is not None and (before is None or before.kv_tokens != scraped.kv_tokens):
            self.resize(scraped.kv_tokens)
        if before is not None and scraped.restarted_since(before):
            self.restarted()

    @property
    def finds_cached(self) -> bool:
        """Whether it is known to have found prompts in its prefix cache."""
        return self.scraped is not None and self.scraped.hit_tokens > 0

    def attempt(self, outgoing: Outgoing, call: Call, cached_tokens: int = 0) -> Attempt:
        """An attempt at `call` here, where so many tokens of its prompt are expected in the cache."""
        if self.kv_events is not None:
            self.kv_events.sent(outgoing.request_id)
        return Attempt(self, outgoing, call, cached_tokens)

    def leave_alone(self, failure: AttemptFailed, now_s: float, sent_s: float = float("-inf")) -> None:
        """It has failed so at what was sent then. Where only a key was refused, that is counted with the key."""
        leaves = failure.sort.leaves
        if isinstance(failure, Refused) and failure.of_key:
            leaves = None
        if leaves == "pause":
            asked_s = failure.retry_after_s or BUSY_RETRY_S if isinstance(failure, Refused) else LANE_FULL_S
            self.cool_down(now_s, asked_s)
        elif leaves is not None:
            self.failed(now_s, leaves, random.random(), sent_s)  # noqa: S311 - jitter

    def counted(self, outcome: str) -> None:
        """An attempt here has ended so."""
        self.attempts[outcome] = self.attempts.get(outcome, 0) + 1
        if self.left.is_set():
            self._call_ended.set()

    def unavailable(self, now_s: float) -> tuple[str | None, float | None]:
        """As for any endpoint, and for want of a key that the provider takes now."""
        state = Standing.unavailable(self, now_s)
        return state if state[0] is not None or not self._has_keys else self.keys.state(now_s)


class Attempt:
    """One try of a call at one endpoint: counted there, judged there, and its reply open inside the block.

    Entering raises AttemptFailed or CallRejected.
    """

    __slots__ = (
        "_expected_cached",
        "_run",
        "_was_well",
        "_watch",
        "_watched",
        "call",
        "candidate",
        "completion_tokens",
        "expected_ttft_s",
        "member",
        "reply",
        "usage",
    )

    candidate: Candidate
    """As planned: its endpoint may be declared anew meanwhile."""

    def __init__(self, member: Member, outgoing: Outgoing, call: Call, expected_cached: int) -> None:
        self.member = member
        self.reply: Reply = member.backend.open(outgoing)
        self.completion_tokens = 0
        """Told by whoever counts them, so that the endpoint's speed can be learned."""
        self.usage: Usage | None = None
        """What the endpoint says it used, where it does."""
        self.expected_ttft_s: float | None = None
        """By its plan."""
        self._watch = outgoing.watch
        self.call = call
        self._expected_cached = expected_cached
        # A reply that is not streamed shows no first token.
        self._watched = outgoing.stream

    def begin(self) -> None:
        """It counts from now on, until `end`."""
        self._was_well = self.member.ejection.well
        self._run = self.member.begin(
            self.call, time.monotonic(), self._expected_cached, watched=self._watched
        )
        if self._watch is not None:
            self._watch.begun()

    async def __aenter__(self) -> Self:
        self.begin()
        try:
            await self.reply.__aenter__()
        except BaseException as error:
            self.end(error)
            raise
        return self

    def first_token(self) -> None:
        self._run.first_token(time.monotonic())

    @property
    def watched(self) -> bool:
        """Whether its first token is seen, which that of a reply in one piece is not."""
        return self._watched

    def waited_s(self, now_s: float) -> float:
        """Since it was asked."""
        return now_s - self._run.started_s

    @property
    def ttft_s(self) -> float | None:
        """From when it was asked to its first token, where that has come."""
        first_s = self._run.first_s
        return None if first_s is None else first_s - self._run.started_s

    def wrote_s(self, now_s: float) -> float:
        """Since its first token, less what prompts read beside it should have taken."""
        return self._run.wrote_s(now_s)

    def progress(self, now_s: float, completion_tokens: int) -> None:
        """It goes on, with so many tokens so far."""
        self._run.progress(now_s, completion_tokens)

    def used(self, usage: Usage) -> None:
        """What the endpoint says it used; an estimate of ours says nothing of its cache."""
        if not usage.estimated:
            self.usage = usage
            if self.member.kv_events is not None:
                self.member.kv_events.used(usage.prompt_tokens, usage.cached_tokens)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """It is over, with this error or whole."""
        try:
            self.reply.release()
        finally:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Judge the endpoint by how the attempt ended. A client that left or a call that was wrong says nothing."""
        member, now_s = self.member, time.monotonic()
        if error is not None:
            conceal(member.keys.secrets, error)
            self._run.unanswered(now_s, refused=isinstance(error, _NOT_READ))
        if self._watched and self.expected_ttft_s is not None and (ttft_s := self.ttft_s) is not None:
            member.first_token_came(self.expected_ttft_s, ttft_s)
        usage = self.usage
        self._run.ended(now_s, self.completion_tokens, None if usage is None else usage.cached_tokens)
        if error is None:
            member.counted("ok")
            member.succeeded(now_s, self._run.started_s)
        elif isinstance(error, AttemptFailed):
            error.crashed = error.sort.crash and self._was_well and member.endpoint.kind == "worker"
            member.counted("rejected" if isinstance(error, Unable) else error.code)
            member.leave_alone(error, now_s, self._run.started_s)
        else:
            member.counted("rejected" if isinstance(error, CallRejected) else "abandoned")
        if self._watch is not None:
            self._watch.ended(self, error)
