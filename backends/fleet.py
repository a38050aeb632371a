"""All endpoints as they are now: who is there, who joins, who leaves.

Routing decides on a snapshot, an immutable copy taken without waiting.

Endpoints come and go while calls run. Whoever knows of some (the configuration, a registry, a discovery) is a source and
says which there should be; one that is gone gets nothing new from that moment on, and its connections are closed when
the last of its calls has ended.
"""

from __future__ import annotations

import logging
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from backends.base import ConnectFailed
from backends.discovery import RESOLVE_S
from backends.incoming import Patience
from backends.kv_check import SentCalls
from backends.kv_events import KvEvents
from backends.lane import LaneLimits
from backends.litellm_thread import LiteLLMThread
from backends.lives import Lives
from backends.member import CONFIG, Member
from backends.worker import Access
from routing.pool import Pool
from routing.prefix import MOST_PIECES_HELD

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import TypeAlias

    from backends.litellm_api import LiteLLMAccess
    from backends.member import Attempt
    from backends.worker import Outgoing
    from routing.ejection import Ejection
    from routing.types import Call, Candidate, Endpoint

    Listed: TypeAlias = tuple[Endpoint, Access | LiteLLMAccess]


log = logging.getLogger(__name__)

MOST_RECORDS = 10_000
"""Of endpoints that have left."""


class FleetSettings(Struct, frozen=True):
    lane: LaneLimits = LaneLimits()
    patience: Patience = Patience()
    health_interval_s: float = 5.0
    health_timeout_s: float = 2.0
    scrape_interval_s: float = 5.0
    resolve_s: float = RESOLVE_S
    """Between two looks at where the name of an endpoint leads."""
    probe_answer_s: float = 30.0
    """For the completion that a worker is probed by: its first may take long."""
    prefix_pieces: int = MOST_PIECES_HELD
    """Remembered of the prompts sent to the endpoints of one model, in all."""


class Fleet:
    """The members, by model; inside its block they are watched, and after it their connections are closed."""

    def __init__(self, endpoints: Mapping[str, Sequence[Listed]], settings: FleetSettings) -> None:
        self.settings = settings
        self._pools: dict[str, Pool] = {}
        """Those of models without members any more are kept: calls may be under way in them, or wait."""
        self._members: dict[tuple[str, str], Member] = {}
        """By the names of model and endpoint."""
        self._records: dict[tuple[str, str], Ejection] = {}
        """How those stood that have left, should they be back: who comes and goes is kept out for longer each time."""
        self._litellm = LiteLLMThread()
        self._sent = SentCalls()
        self._lives = Lives(settings)
        self.agree(CONFIG, endpoints)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        if any(member.endpoint.kind == "litellm" for member in self.members):
            await self.load_litellm()
        await self._stack.enter_async_context(self._lives)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def load_litellm(self) -> None:
        """Takes seconds; to be done before the first endpoint that wants it joins."""
        if self._litellm.sdk is None:
            await self._stack.enter_async_context(self._litellm)

    def agree(self, source: str, wanted: Mapping[str, Sequence[Listed]]) -> None:
        """From now on these, by model, are what there is of `source`: others join, change and leave as it takes.

        A change of what is only said of an endpoint leaves its connections and what was learned of it as they are. A name
        that another source has taken stays with that one, but what is configured wins.
        """
        listed = {
            (model, endpoint.name): (endpoint, access)
            for model, endpoints in wanted.items()
            for endpoint, access in endpoints
        }
        for key, member in list(self._members.items()):
            if member.source == source and (key not in listed or listed[key][1] != member.access):
                self._leave(key)
        for model in wanted:
            self._pools.setdefault(model, Pool(self.settings.prefix_pieces))
        for key, (endpoint, access) in listed.items():
            known = self._members.get(key)
            if known is not None and source == CONFIG != known.source:
                self._leave(key)
                known = None
            if known is None:
                self._join(source, endpoint, access)
            elif known.source != source:
                log.warning("%s of %s is known by %s already", endpoint.name, endpoint.model, known.source)
            elif known.declared != endpoint:
                known.redeclare(endpoint)

    def _join(self, source: str, endpoint: Endpoint, access: Access | LiteLLMAccess) -> None:
        member = Member(endpoint, access, self.settings, self._pools[endpoint.model], self._litellm)
        member.source = source
        self._members[endpoint.model, endpoint.name] = member
        if isinstance(access, Access) and access.kv_events is not None:
            member.kv_events = KvEvents(endpoint.name, access.kv_events, member, self._sent)
        if self._lives.running and endpoint.kind == "worker":
            # Those there from the start are taken as they are: a gateway that is started anew under load must not turn all
            # calls away until it has probed.
            member.ejection = self._records.pop((endpoint.model, endpoint.name), member.ejection)
            member.ejection.join(time.monotonic())
        self._lives.begin(member)

    def _leave(self, key: tuple[str, str]) -> None:
        member = self._members.pop(key)
        self._pools[key[0]].remove(key[1])
        member.left.set()
        self._records[key] = member.ejection
        if len(self._records) > MOST_RECORDS:
            del self._records[next(iter(self._records))]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._pools)

    @property
    def pools(self) -> Collection[Pool]:
        return self._pools.values()

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    def find(self, endpoint: Endpoint) -> Member | None:
        """The member that `endpoint` was taken from, if it is still there."""
        member = self._members.get((endpoint.model, endpoint.name))
        if member is None or member.endpoint.url != endpoint.url:
            return None
        return member

    def member(self, endpoint: Endpoint) -> Member:
        """The same. Raises ConnectFailed where it has left since the call was planned."""
        member = self.find(endpoint)
        if member is None:
            raise ConnectFailed("it has just left the fleet")
        return member

    def pool(self, model: str) -> Pool:
        """What is known of a model's endpoints. Raises KeyError where there has been no such model."""
        return self._pools[model]

    def attempt(self, candidate: Candidate, outgoing: Outgoing, call: Call) -> Attempt:
        """An attempt at `call` by a candidate of its plan."""
        attempt = self.member(candidate.endpoint).attempt(outgoing, call, candidate.cached_tokens)
        attempt.candidate, attempt.expected_ttft_s = candidate, candidate.estimate.ttft_s
        return attempt

    @property
    def ready(self) -> bool:
        """Whether any endpoint is known to be able to serve."""
        now_s = time.monotonic()
        return any(member.checked and member.load(now_s).unavailable is None for member in self.members)
