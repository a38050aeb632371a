"""The cache-aware policies of other routers, written anew from their published formulas with their defaults.

Each says where its formula stands. What they share, an index of the prompts sent to each endpoint, is exact here to the
page, where some of theirs are approximate: that favours them.
"""

from __future__ import annotations

from collections import Counter, deque
from math import inf, sqrt
from typing import TYPE_CHECKING

from loadtest.sim.holders import Holders
from loadtest.sim.plain import Counting, least

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.sim.calls import SimCall
    from loadtest.sim.policy import Flight, Place, Scraped

CHARS_PER_TOKEN = 4


class Indexed(Counting):
    """With an index of which endpoint was sent which prefix."""

    def __init__(
        self, place: Place, capacities: Sequence[float] | None = None, lifetime_s: float = inf
    ) -> None:
        super().__init__(place)
        self.holders = Holders(len(self.inflight), capacities, lifetime_s)

    def sent(self, flight: Flight, now_s: float) -> None:
        super().sent(flight, now_s)
        self.holders.add(flight.endpoint, flight.call.pages, now_s)

    def gone(self, endpoint: int, now_s: float) -> None:
        super().gone(endpoint, now_s)
        self.holders.drop(endpoint)


class SglangCacheAware(Indexed):
    """sglang sgl-router/src/policies/cache_aware.rs, with the command line's defaults.

    Imbalanced (most - fewest in flight > 64 and most > 1.5 x fewest): fewest in flight. Else, if the longest match is
    more than 0.3 of the prompt, its holder, otherwise whoever holds least. Each tree is cut to 2**26 characters every 120 s.
    """

    CACHE_THRESHOLD = 0.3
    ABSOLUTE = 64
    RELATIVE = 1.5
    EVERY_S = 120.0
    TREE_CHARS = 2**26

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._cut_s = 0.0

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        if not open_to:
            return None
        if now_s - self._cut_s >= self.EVERY_S:
            self._cut_s = now_s
            for endpoint in range(len(self.inflight)):
                self.holders.trim(endpoint, self.TREE_CHARS // (CHARS_PER_TOKEN * self.place.page_tokens))
        loads = [self.inflight[endpoint] for endpoint in open_to]
        most, fewest = max(loads), min(loads)
        if most - fewest > self.ABSOLUTE and most > self.RELATIVE * fewest:
            return least(open_to, self.inflight.__getitem__, roll)
        matches = self.holders.matches(call.pages, now_s)
        best = max(open_to, key=matches.__getitem__)
        if call.pages and matches[best] / len(call.pages) > self.CACHE_THRESHOLD:
            return best
        return least(open_to, self.holders.held, roll)


class SglangLibrary(SglangCacheAware):
    """The same with the library's defaults (CacheAwareConfig): 0.5, 32, 1.1, 10,000 characters every 30 s."""

    CACHE_THRESHOLD = 0.5
    ABSOLUTE = 32
    RELATIVE = 1.1
    EVERY_S = 30.0
    TREE_CHARS = 10_000


class Dynamo(Indexed):
    """ai-dynamo lib/kv-router/src/scheduling/selector/default.rs, without KV events, temperature 0.

    Fewest blocks of 16 tokens: max(0, prefill under way there + this prompt - its overlap) + the different blocks of all
    sequences under way there with this one's (overlap credit 1, prefill scale 1, no decay, no weight on requests: the defaults).
    What was sent is believed to be cached for 120 s.
    """

    BLOCK_TOKENS = 16
    LIFETIME_S = 120.0

    def __init__(self, place: Place) -> None:
        super().__init__(place, lifetime_s=self.LIFETIME_S)
        self._active: list[Counter[int]] = [Counter() for _ in self.inflight]
        """Pages of the sequences under way at each, with how many are on each page."""
        self._matched: tuple[SimCall | None, list[int]] = (None, [])

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        matches = self.holders.matches(call.pages, now_s)
        self._matched = call, matches
        page_tokens = self.place.page_tokens

        def blocks(endpoint: int) -> float:
            active = self._active[endpoint]
            fresh = sum(1 for page in call.pages if page not in active)
            overlap = matches[endpoint] * page_tokens
            prefill = max(0, self.pending_tokens[endpoint] + call.prompt_tokens - overlap)
            return (prefill + (len(active) + fresh) * page_tokens) / self.BLOCK_TOKENS

        return least(open_to, blocks, roll)

    def uncached(self, flight: Flight, now_s: float) -> int:  # noqa: ARG002 - of the base
        call, matches = self._matched
        hit = matches[flight.endpoint] * self.place.page_tokens if call is flight.call else 0
        return max(0, flight.call.prompt_tokens - hit)

    def sent(self, flight: Flight, now_s: float) -> None:
        super().sent(flight, now_s)
        self._active[flight.endpoint].update(flight.call.pages)

    def ended(self, flight: Flight, now_s: float, failure: str | None) -> None:
        super().ended(flight, now_s, failure)
        active = self._active[flight.endpoint]
        for page in flight.call.pages:
            active[page] -= 1
            if not active[page]:
                del active[page]


class LlmD(Indexed):
    """llm-d's default profile: 3 x prefix + 2 x queue + 2 x kv, the greatest sum wins.

    llm-d-inference-scheduler and gateway-api-inference-extension pkg/epp/.../scorer: prefix is the matched share of the
    prompt (an LRU of 31,250 blocks of 64 characters for each), queue is 1 for the shortest scraped queue and 0 for
    the longest, kv is 1 - the scraped use of the KV cache.
    """

    PREFIX = 3.0
    QUEUE = 2.0
    KV = 2.0
    INDEXED_TOKENS = 31_250 * 64 / CHARS_PER_TOKEN

    def __init__(self, place: Place) -> None:
        count = len(place.nodes) + len(place.hosted)
        super().__init__(place, [self.INDEXED_TOKENS / place.page_tokens] * count)

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        if not open_to:
            return None
        matches = self.holders.matches(call.pages, now_s)
        scraped = self.place.scrape(now_s)
        queues = [scraped[endpoint].waiting for endpoint in open_to]
        longest, shortest = max(queues), min(queues)

        def negative_score(endpoint: int) -> float:
            seen: Scraped = scraped[endpoint]
            queue = 1.0 if longest == shortest else (longest - seen.waiting) / (longest - shortest)
            prefix = matches[endpoint] / max(1, len(call.pages))
            return -(self.PREFIX * prefix + self.QUEUE * queue + self.KV * (1.0 - seen.kv_usage))

        return least(open_to, negative_score, roll)


class Aibrix(Indexed):
    """aibrix pkg/plugins/gateway/algorithms/prefix_cache.go, policy `prefix-cache`.

    If the busiest has more than 2 x (mean + 1) running and 8 more than the idlest, only the idlest are matched. Of the
    matched, longest match first and fewest running among equals, the first with at most mean + 1 standard deviation
    running; where there is none, the one with fewest running.
    """

    DEVIATIONS = 1.0
    FACTOR = 2.0
    LEAST_GAP = 8

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        if not open_to:
            return None
        running = {endpoint: self.inflight[endpoint] for endpoint in open_to}
        counts = running.values()
        mean = sum(counts) / len(counts)
        fewest = min(counts)
        eligible: Sequence[int] = open_to
        if max(counts) > self.FACTOR * (mean + 1) and max(counts) - fewest >= self.LEAST_GAP:
            eligible = [endpoint for endpoint in open_to if running[endpoint] == fewest]
        matches = self.holders.matches(call.pages, now_s)
        most = mean + self.DEVIATIONS * sqrt(sum((each - mean) ** 2 for each in counts) / len(counts))
        matched = [each for each in eligible if matches[each] and running[each] <= most]
        if matched:
            return min(matched, key=lambda each: (-matches[each], running[each]))
        return least(open_to, running.__getitem__, roll)


class ProductionStack(Indexed):
    """vllm-project/production-stack src/vllm_router/routers/routing_logic.py, LoadAwareRouter (#1035), beta 1.

    Greatest matched share of the prompt - (in flight - mean) / max(1, mean). Where nobody holds any of it: lowest QPS,
    here fewest in flight. Its index is LMCache's controller, so it knows of each cache as much as fits into it.
    """

    BETA = 1.0

    def __init__(self, place: Place) -> None:
        capacities = [node.spec.kv_tokens / place.page_tokens for node in place.nodes]
        super().__init__(place, [*capacities, *[0.0] * len(place.hosted)])

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        if not open_to:
            return None
        matches = self.holders.matches(call.pages, now_s)
        if not any(matches[endpoint] for endpoint in open_to):
            return least(open_to, self.inflight.__getitem__, roll)
        mean = sum(self.inflight[endpoint] for endpoint in open_to) / len(open_to)

        def score(endpoint: int) -> float:
            share = matches[endpoint] * self.place.page_tokens / max(1, call.prompt_tokens)
            return share - self.BETA * (self.inflight[endpoint] - mean) / max(1.0, mean)

        return max(open_to, key=score)  # ties by name, as there


class Smetric(Indexed):
    """vllm-project/router src/policies/smetric.rs, colocated, with the documented defaults.

    A turn after the first stays with the longest match if that is more than half of the turn before and the expected
    first token meets 1 s + 62.5 ms per 1,000 tokens there (or nowhere). All others: least (pending + own uncached
    tokens) x calls in flight. Rates are the 90th percentile of the last 64 seen, once there are 8.
    """

    HIT_RATIO = 0.5
    SLACK = 1.0
    SLO_S = 1.0
    SLO_S_PER_TOKEN = 0.0625 / 1000
    SAMPLES = 64
    LEAST_SAMPLES = 8

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._samples: list[deque[float]] = [deque(maxlen=self.SAMPLES) for _ in self.inflight]
        self._rates: list[float | None] = [None] * len(self.inflight)
        self._turn = 0
        self._costs: tuple[SimCall | None, dict[int, int]] = (None, {})

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:  # noqa: ARG002 - of the protocol
        if not open_to:
            return None
        self._turn += 1
        start = self._turn % len(open_to)
        order = [*open_to[start:], *open_to[:start]]
        matches = self.holders.matches(call.pages, now_s)
        costs = {each: max(0, call.prompt_tokens - matches[each] * self.place.page_tokens) for each in order}
        self._costs = call, costs
        queued = {each: self.pending_tokens[each] + costs[each] for each in order}
        budget_s = self.SLACK * (self.SLO_S + self.SLO_S_PER_TOKEN * call.prompt_tokens)
        meets = {
            each: (rate := self._rates[each]) is None or queued[each] / rate <= budget_s for each in order
        }
        holder = max(order, key=matches.__getitem__)
        hit_tokens = matches[holder] * self.place.page_tokens
        stays = call.earlier_tokens > 0 and hit_tokens > self.HIT_RATIO * call.earlier_tokens
        if stays and (meets[holder] or not any(meets.values())):
            return holder
        return min(order, key=lambda each: queued[each] * self.inflight[each])

    def uncached(self, flight: Flight, now_s: float) -> int:  # noqa: ARG002 - of the base
        call, costs = self._costs
        return costs[flight.endpoint] if call is flight.call else flight.call.prompt_tokens

    def first_token(self, flight: Flight, now_s: float) -> None:
        if isinstance(flight.note, int) and flight.note > 0 and now_s > flight.sent_s:
            samples = self._samples[flight.endpoint]
            samples.append(flight.note / (now_s - flight.sent_s))
            if len(samples) >= self.LEAST_SAMPLES:
                self._rates[flight.endpoint] = sorted(samples)[round((len(samples) - 1) * 0.9)]
        super().first_token(flight, now_s)
