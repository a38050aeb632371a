"""All endpoints of one model and what is known of them: who is under way where, how fast each is, what its cache holds.

Here a call's plan is made, and here comes back what became of it. It does no I/O and has no clock of its own, so a
gateway and a simulation drive the very same one: `plan`, then `begin` at the endpoint chosen, `first_token`, `ended`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import structs

from routing.decision import Decision
from routing.draw import LOOK_AT, Draw
from routing.ejection import Ejection
from routing.estimate import MEAN_OUTPUT_TOKENS, NOTHING_CACHED, prefill_work
from routing.filters import fits
from routing.foresight import Foresight
from routing.gossip import News, Standings
from routing.gpu import kv_tokens_for
from routing.hedging import Hedging
from routing.looks import Looks
from routing.pace import Peers
from routing.pipeline import NO_DEPARTURES, plan, plan_drawn
from routing.prefix import MOST_PIECES_HELD, PIECE_TOKENS, PrefixIndex
from routing.quick import terms_of
from routing.ramp import BUSY_RETRY_S, RAMP_RETRY_S, Ramp
from routing.run import Run
from routing.speed import Speed
from routing.types import Load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from routing.ejection import FailureKind
    from routing.quick import Terms
    from routing.types import Call, Endpoint, Plan, Price, Turn

OUTPUT_WEIGHT = 0.02
"""Of the newest call in the running mean of output tokens: about the last fifty calls count."""

MOST_TENANTS = 10_000
"""Whose mean output is remembered by itself."""


class Standing:
    """How one endpoint stands."""

    def __init__(self, endpoint: Endpoint, pool: Pool, most_inflight: int | None = None) -> None:
        self.endpoint = endpoint
        self.ejection = Ejection()
        self.inflight = 0
        self.place = pool.claim(self)
        hosted = endpoint.kind != "worker"
        # A provider's speed says nothing of the workers', nor theirs of its.
        self.speed = Speed(endpoint.gpu, None if hosted else pool.peers, parallel=hosted)
        self._most_inflight = most_inflight
        self._pool = pool
        self._ramp: Ramp | None = None
        self.draining = False
        """Whether it finishes what it has and gets nothing new."""
        self.inflight_elsewhere = 0
        """Calls that other gateways have there, as far as they say so."""
        self._reports_cached = False
        self._shared_until_s = math.inf

    def move_to(self, pool: Pool) -> None:
        """What happens there from now on is that pool's."""
        self._pool = pool
        self.place = pool.claim(self)

    @property
    def departs_s(self) -> float | None:
        """When it leaves, where it has said so."""
        return self._pool.leaving.get(self.endpoint.name)

    def depart(self, at_s: float | None, *, draining: bool = False) -> None:
        """It leaves then, or after all not; `draining` where it is to get no more calls until then."""
        self.draining = draining
        if at_s is None:
            self._pool.leaving.pop(self.endpoint.name, None)
        else:
            self._pool.leaving[self.endpoint.name] = at_s
        self.changed()

    def out(self, now_s: float) -> bool:
        """Whether it is not just busy, or pausing, but gone for now: failed, not probed yet, draining."""
        return self.draining or self.ejection.out(now_s)

    def soon(self, now_s: float) -> bool:
        """Whether it may be back in a moment, where it gets no calls now: it is busy, pausing, or ejected for what passes."""
        return not self.draining and (not self.ejection.out(now_s) or self.ejection.is_passing(now_s))

    def unavailable(self, now_s: float) -> tuple[str | None, float | None]:
        """Why it gets no call now, and in how many seconds it may again; (None, None) where it gets calls."""
        if self.draining:
            return "is draining", None
        if self._most_inflight is not None and self.inflight >= self._most_inflight:
            reason, wait_s = self.ejection.state(now_s)
            return (reason, wait_s) if reason else (f"busy with {self.inflight} calls", BUSY_RETRY_S)
        if self._ramp is not None:
            return self._while_ramping(self._ramp, now_s)
        return self.ejection.state(now_s)

    def _while_ramping(self, ramp: Ramp, now_s: float) -> tuple[str | None, float | None]:
        most = ramp.most(now_s)
        if most is None:
            self._ramp = None
        reason, wait_s = self.ejection.state(now_s)
        if reason is None and most is not None and self.inflight >= most:
            return f"is new, and gets {most} calls at a time for now", RAMP_RETRY_S
        return reason, wait_s

    @property
    def ramping(self) -> bool:
        """Whether it gets a few calls only, for now."""
        return self._ramp is not None

    def ramp_up(self, now_s: float) -> None:
        """It gets calls from now on: a few at first, where others are there for the rest."""
        if self._pool.has_others(self, now_s):
            self._ramp = Ramp(now_s)
        self.changed()

    def load(self, now_s: float) -> Load:
        """Its load now."""
        if now_s >= self._shared_until_s:
            self.shared_with(0, 0, now_s, math.inf)
        load = self.speed.load(now_s, self.inflight, *self.unavailable(now_s))
        resort_s = None if load.unavailable is None or self.draining else self.ejection.resort_s(now_s)
        return load if resort_s is None else structs.replace(load, resort_s=resort_s)

    def changed(self) -> None:
        """Something has happened there: what was seen of it does not hold any more."""
        self._pool.changed.add(self)
        if self._pool.news.wanted:
            self._pool.news.changed.add(self)

    def begin(self, call: Call, now_s: float, cached_tokens: int = 0, *, watched: bool = True) -> Run:
        """`call` is sent there now, where so many tokens of its prompt are expected in the cache.

        `watched` where its first token will be seen, which a reply that is no stream does not show.
        """
        self.inflight += 1
        if self.ejection.trial is not None:
            self.ejection.trial.sent(now_s)
        self.changed()
        ticket = self.speed.start(now_s, prefill_work(call.prompt_tokens, cached_tokens), watched=watched)
        if call.pieces:
            output_tokens = self._pool.output_tokens(call.tenant)
            self._pool.prefixes.place(self.place, call.pieces, call.turn, output_tokens)
            if self._pool.news.wanted:
                self._pool.news.placed.append((self, call.pieces, call.turn, output_tokens))
        return Run(self, ticket, cached_tokens, call.pieces)

    def succeeded(self, now_s: float, sent_s: float = -math.inf) -> None:
        """A call was answered there that was sent then."""
        self.ejection.succeeded(now_s, sent_s)
        if self._ramp is not None:
            self._ramp.answered()

    def failed(self, now_s: float, kind: FailureKind, roll: float, sent_s: float = -math.inf) -> None:
        """A call failed there that was sent then; `roll`, uniform in [0, 1), is the jitter of how long it is left alone."""
        self.ejection.failed(now_s, kind, roll, sent_s)
        self.changed()
        if kind in ("connect", "engine_dead"):
            self.restarted()

    def pardon(self, now_s: float) -> None:
        """It was not at fault when it last failed."""
        self.ejection.pardon(now_s)
        self.changed()

    def cool_down(self, now_s: float, seconds: float) -> None:
        """It asked for a pause."""
        self.ejection.cool_down(now_s, seconds)
        self.changed()

    def shared_with(self, running: int, waiting: int, now_s: float, until_s: float) -> None:
        """It says that so many calls of others run and wait there, which is believed until then."""
        self.speed.shared_with(running, waiting, now_s)
        self._shared_until_s = until_s
        self.changed()

    # What gateways that share it tell each other; see `routing.gossip`

    def unsaid(self) -> None:
        """It is to be spoken of."""
        self._pool.news.changed.add(self)

    def said(self, name: int, now_s: float) -> Standings:
        """How we stand with it."""
        out_s, failure = self.ejection.ejected(now_s)
        return Standings(name, self.inflight, *self.speed.said(now_s), out_s, failure)

    def heard_of(self, said: Sequence[Standings], done_work: float, now_s: float) -> None:
        """How all the others stand with it, and what work has been done there for one of them since it last said so."""
        self.inflight_elsewhere = sum(each.inflight for each in said)
        self.speed.heard_of(said, done_work, now_s)
        self._pool.changed.add(self)

    def warned(self, now_s: float, kind: FailureKind, seconds: float) -> None:
        """Another gateway leaves it alone for so long."""
        if self.ejection.warned(now_s, kind, seconds) and kind in ("connect", "engine_dead"):
            self.restarted()
        self._pool.changed.add(self)

    def placed_elsewhere(self, pieces: Sequence[int], turn: Turn | None, output_tokens: float) -> None:
        """Another gateway has sent it a prompt."""
        self._pool.prefixes.place(self.place, pieces, turn, output_tokens)

    def restarted(self) -> None:
        """Nobody is there, or somebody new: its cache is empty."""
        self._pool.prefixes.forget(self.place)

    def resize(self, kv_tokens: int) -> None:
        """Its cache has room for so many tokens."""
        self._pool.prefixes.resize(self.place, kv_tokens)

    def trim(self, kv_tokens: int) -> None:
        """Its cache holds at most so many tokens now."""
        self._pool.prefixes.trim(self.place, kv_tokens)

    def take_back(self, pieces: Sequence[int], share_read: float) -> None:
        """Of a prompt sent there only this share was read, beyond what it held before."""
        self._pool.prefixes.take_back(self.place, pieces, share_read)

    def first_token_came(self, expected_s: float, observed_s: float) -> None:
        """A call that was planned for here has had its first token, so long after it was asked."""
        self._pool.foresight.first_token(expected_s, observed_s)

    def found_cached(self, expected_tokens: int, reported_tokens: int) -> None:
        """It says how many tokens of a prompt were in its cache. Some never do, and say 0 to everything."""
        self._reports_cached = self._reports_cached or reported_tokens > 0
        if self._reports_cached:
            self._pool.foresight.cached(expected_tokens, reported_tokens)
        if self._reports_cached and expected_tokens:
            self._pool.prefixes.correct(self.place, expected_tokens, reported_tokens)


class Pool:
    """The endpoints of one model."""

    def __init__(self, most_pieces: int = MOST_PIECES_HELD) -> None:
        self.standings: dict[str, Standing] = {}
        """By the name of the endpoint."""
        self.peers = Peers()
        self.hedging = Hedging()
        self.foresight = Foresight()
        self.prefixes = PrefixIndex(most_pieces)
        self.changed: set[Standing] = set()
        """Those at which something has happened since they were last seen."""
        self.news = News()
        self.leaving: dict[str, float] = {}
        """When those leave that have said so, by the name of the endpoint."""
        self._seen: dict[str, tuple[Endpoint, Load]] = {}
        self._terms: dict[str, Terms] = {}
        """Of all in `_seen`, in the same order."""
        self._unavailable: set[str] = set()
        self._draw: Draw | None = None
        """Whom to look at of very many; None: too few, or to be made anew."""
        self.contexts: tuple[int | None, ...] = ()
        """Tokens that the endpoints' contexts have, each figure once; None: of one that does not say."""
        self._least_context = math.inf
        self._prices: dict[Price, Price] = {}
        """What the endpoints cost: for each price the one object that stands for all that are equal to it."""
        self._looks = Looks()
        self._names: dict[int, str] = {}
        """Of the endpoints, by their place in the index."""
        self._output_tokens = MEAN_OUTPUT_TOKENS
        self._output_by_tenant: dict[str, float] = {}

    def add(self, endpoint: Endpoint, most_inflight: int | None = None) -> Standing:
        """Take `endpoint` in, for at most so many calls at a time."""
        return Standing(endpoint, self, most_inflight)

    def claim(self, standing: Standing) -> int:
        """A place for a new endpoint. Its standing does this itself."""
        endpoint = standing.endpoint
        place = next(place for place in range(len(self._names) + 1) if place not in self._names)
        self._names[place] = endpoint.name
        self.standings[endpoint.name] = standing
        # It is looked at before it is shown; this keeps the order.
        self._seen[endpoint.name] = (endpoint, Load())
        self._looks.among(self)
        self._survey()
        self._terms[endpoint.name] = terms_of(endpoint, Load(), self._prices[endpoint.cost])
        self.changed.add(standing)
        self.news.members += 1
        self.prefixes.add(place, kv_tokens_for(endpoint.gpu))
        return place

    def remove(self, name: str) -> None:
        """Forget an endpoint. Calls still under way there go on in a pool of its own, which nobody looks at."""
        standing = self.standings.pop(name)
        self.changed.discard(standing)
        self.news.changed.discard(standing)
        self.news.members += 1
        self.leaving.pop(name, None)
        del self._seen[name], self._terms[name]
        self._unavailable.discard(name)
        self._looks.among(self)
        self._survey()
        self.prefixes.remove(standing.place)
        del self._names[standing.place]
        standing.move_to(Pool(most_pieces=0))

    def has_others(self, standing: Standing, now_s: float) -> bool:
        """Whether anybody else gets calls."""
        return any(each is not standing and each.unavailable(now_s)[0] is None for each in self)

    def __iter__(self) -> Iterator[Standing]:
        return iter(self.standings.values())

    def snapshot(self, now_s: float) -> tuple[tuple[Endpoint, Load], ...]:
        """All of them with their load now. Where nothing has happened, what was worked out a moment ago still holds."""
        self.changed.update(self._looks.due(now_s))
        for standing in self.changed:
            self._look_at(standing, now_s)
        self.changed.clear()
        return tuple(self._seen.values())

    def _look_at(self, standing: Standing, now_s: float) -> None:
        endpoint, load = standing.endpoint, standing.load(now_s)
        name = endpoint.name
        if (load.unavailable is None) == (name in self._unavailable):
            self._unavailable ^= {name}
            self._draw = None
        before = self._seen[name][0]
        self._seen[name] = (endpoint, load)
        if endpoint is not before:
            self._survey()
        self._terms[name] = terms_of(endpoint, load, self._prices[endpoint.cost])
        self._looks.saw(standing, load)

    def _survey(self) -> None:
        """What is said of the endpoints has changed."""
        self._draw = None
        endpoints = [endpoint for endpoint, _ in self._seen.values()]
        self.contexts = tuple({endpoint.context_tokens for endpoint in endpoints})
        self._least_context = min((each for each in self.contexts if each is not None), default=math.inf)
        self._prices = {endpoint.cost: endpoint.cost for endpoint in endpoints}

    def cached_tokens(self, call: Call) -> Mapping[str, int]:
        """How many tokens of the call's prompt are expected in the cache of each endpoint that holds any, by name."""
        held = self.prefixes.held(call.pieces, call.turn) if call.pieces else None
        if not held:
            return NOTHING_CACHED
        most, names, counts = call.prompt_tokens, self._names, set(held.values())
        if len(counts) == 1 and len(held) == len(names):  # as of what all prompts begin with
            return dict.fromkeys(self._seen, min(counts.pop() * PIECE_TOKENS, most))
        found: dict[str, int] = {}
        for place, count in held.items():
            tokens = count * PIECE_TOKENS
            found[names[place]] = tokens if tokens < most else most  # noqa: FURB136 - `min` costs five times as much
        return found

    def output_tokens(self, tenant: str) -> float:
        """What a call of this tenant is expected to write: the mean of those before it, or else of everybody's."""
        return self._output_by_tenant.get(tenant, self._output_tokens)

    def wrote(self, tenant: str, tokens: int) -> None:
        """A call of this tenant has written so many tokens to its end."""
        mean = self._output_by_tenant.get(tenant, self._output_tokens)
        self._output_tokens += OUTPUT_WEIGHT * (tokens - self._output_tokens)
        means = self._output_by_tenant
        if tenant not in means and len(means) >= MOST_TENANTS:
            del means[next(iter(means))]
        means[tenant] = mean + OUTPUT_WEIGHT * (tokens - mean)

    def plan(self, call: Call, now_s: float, roll: float) -> Plan:
        """The plan for `call` now; `roll`, uniform in [0, 1), settles ties."""
        output_tokens = self._output_by_tenant.get(call.tenant, self._output_tokens)
        cached_tokens = self.cached_tokens(call)
        snapshot = self.snapshot(now_s)
        departures = self.departures(now_s) if self.leaving else NO_DEPARTURES
        terms: tuple[Terms, ...] = ()
        if len(snapshot) > LOOK_AT:
            if not departures and fits(call, self._least_context):
                if self._draw is None:
                    self._draw = Draw(snapshot)
                terms = tuple(self._terms.values())
                drawn = plan_drawn(call, snapshot, roll, output_tokens, cached_tokens, terms, self._draw)
                if drawn is not None:
                    return drawn
        elif not self._unavailable and fits(call, self._least_context):
            terms = tuple(self._terms.values())
        return plan(call, snapshot, roll, output_tokens, cached_tokens, departures, terms)

    def decision(self, call: Call, now_s: float, roll: float) -> Decision:
        """All that `plan` would look at, without the names of the prompt's pieces: whoever guesses it could check the guess."""
        bare = structs.replace(call, pieces=(), turn=None)
        output_tokens = self.output_tokens(call.tenant)
        cached_tokens, departures = dict(self.cached_tokens(call)), dict(self.departures(now_s))
        return Decision(bare, self.snapshot(now_s), roll, output_tokens, cached_tokens, departures)

    def departures(self, now_s: float) -> Mapping[str, float]:
        """In how many seconds those leave that have said so, by name."""
        return {name: departs_s - now_s for name, departs_s in self.leaving.items()}
