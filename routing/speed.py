"""How fast an endpoint is, learned from the calls sent there.

A declared GPU is only a first guess: cards are throttled, shared, misdeclared, or busy with what this gateway does not
see. So each endpoint's speed is measured on its own calls, with nothing to scrape: the prefill rate from when first
tokens come, the decode pace from how long streams take, fixed costs from the quickest short prompts. What was seen
fades, and the guess returns by itself, which is all the exploration needed.

Every operation is O(1). Time is whatever monotonic clock the caller passes; a step back counts as standing still.
"""

# ruff: noqa: PLR1730 - `max` costs five times a comparison, and `load` runs for every endpoint of every call.

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import takewhile
from typing import TYPE_CHECKING

from routing.elsewhere import NOTHING_ELSEWHERE, together
from routing.gpu import prior_for
from routing.pace import LEAST_SAMPLE_S, LONGEST_SAMPLE_S, PRIOR_S, Pace, Peers, Sums
from routing.ticket import Ticket
from routing.types import Load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routing.gossip import Standings

ARRIVALS_HALF_LIFE_S = 20.0
"""After this long a call sent counts half in how much is being sent; from simulation."""

_PER_S_OF_SUM = math.log(2.0) / ARRIVALS_HALF_LIFE_S
"""What a sum that fades so, of something that goes on evenly, is to be multiplied by for its rate per second."""

HOLDS_S = 0.005
"""For so long the passing of time alone changes no rate worth the arithmetic: they fade over half a minute."""

MOST_BUSY = 1.0
"""Of its time: more than all of it no endpoint can be asked for and keep up."""

MOST_OTHERS = 256
"""Calls of others that are believed to run at an endpoint at most: vLLM runs so many at a time unless told otherwise."""

BASE_PRIOR_S = 0.02
"""Seconds to the first token of an empty prompt before any is seen: a network nearby and a step of the scheduler."""

BASE_WORK = 512.0
"""Token-equivalents of prefill up to which a time to first token tells of fixed costs rather than of the rate."""

BASE_RISE = 1.05
BASE_RISE_S = 0.0005
"""How far the fixed cost may rise at one sample, as a factor and in seconds. It falls at once: only delays that this
gateway did not cause can make a sample too long, nothing can make it too short."""


class Speed:
    """The work under way at one endpoint and the speed learned from it.

    Each attempt is a ticket: `start`, then `first_token` if one comes, `progress` now and then, and `finish`, however it ended. A ticket that
    never finishes counts as a stalled call for ever, so finish it in a `finally`. Finishing twice does nothing.

    A reply that comes as one piece shows no first token. Its ticket is not watched: it teaches nothing, counts as a
    sequence in the batch, and its prefill as pending for as long as it is expected to take.

    A hosted endpoint is `parallel`: it has servers to spare, so that calls neither wait for each other nor slow each other
    down as far as can be seen from here.
    """

    __slots__ = (
        "_base_s",
        "_done_work",
        "_elsewhere",
        "_foreign_running",
        "_foreign_waiting",
        "_hidden",
        "_hidden_at_s",
        "_hidden_work",
        "_known_for_s",
        "_known_rate",
        "_known_slower",
        "_known_until_s",
        "_now_s",
        "_others_done",
        "_others_served",
        "_others_waiting",
        "_pace",
        "_parallel",
        "_peers",
        "_peers_learned",
        "_pending",
        "_pending_work",
        "_prior",
        "_rate",
        "_sent",
        "_served_until_s",
    )

    def __init__(self, gpu: str | None = None, peers: Peers | None = None, *, parallel: bool = False) -> None:
        """`peers` is shared by the workers of one model."""
        self._parallel = parallel
        self._prior = prior_for(gpu)
        self._peers = Peers() if peers is None else peers
        self._rate = Sums()
        self._sent = Sums(ARRIVALS_HALF_LIFE_S)
        """Work, and calls."""
        self._pace = Pace(self._prior, self._peers)
        self._base_s = BASE_PRIOR_S
        self._pending: OrderedDict[Ticket, None] = OrderedDict()
        """Tickets whose first token has not come, oldest first."""
        self._pending_work = 0.0
        self._hidden = 0
        """Tickets under way that are not watched."""
        self._hidden_work = self._hidden_at_s = 0.0
        """What is expected to be left of their prefill, and when that was reckoned."""
        self._others_waiting = self._foreign_running = self._foreign_waiting = 0
        self._elsewhere = NOTHING_ELSEWHERE
        self._done_work = 0.0
        """Token-equivalents of prefill whose first token has come, ever."""
        self._others_done = self._others_served = 0.0
        """The same of other gateways' that has been seen done; and what that was at `_served_until_s`."""
        self._served_until_s = float("-inf")
        """Up to when the endpoint's time is accounted for: work that comes out next has been done since."""
        self._now_s = float("-inf")
        self._known_rate = self._known_for_s = self._known_slower = 0.0
        """What was learned, as it was last put together: the prefill rate, the seconds that speak for it, and `Pace.slower`."""
        self._known_until_s = float("-inf")
        self._peers_learned = 0

    def start(self, now_s: float, work: float, *, watched: bool = True) -> Ticket:
        """Work of so many token-equivalents has been sent."""
        now_s = self._forward(now_s)
        hidden_work = self._hidden_left(now_s, self._work_per_s(now_s)) if self._hidden else 0.0
        queued = bool(self._pending) or hidden_work > 0.0
        ticket = Ticket(max(0.0, work), now_s, queued and not self._parallel, watched=watched)
        ticket.others_ahead, ticket.others_done = self._elsewhere.pending_work, self._others_done
        self._sent.add(now_s, ticket.work, 1.0)
        if not watched:
            self._hidden += 1
            self._hidden_work, self._hidden_at_s = hidden_work + ticket.work, now_s
            self._pace.reading(now_s)
            self._pace.decoding += 1
            return ticket
        if not self._pending:
            self._pace.reading(now_s)
            self._pace.reading_prompts = not self._parallel
        self._pending[ticket] = None
        self._pending_work += ticket.work
        return ticket

    def first_token(self, ticket: Ticket, now_s: float) -> None:
        """Its first token has come: a sample of the prefill rate, and of fixed costs where the prompt was short."""
        if ticket.ended or ticket.first_s is not None or not ticket.watched:
            return
        now_s = self._forward(now_s)
        self._learn_base(ticket, now_s)
        self._learn_rate(now_s, ticket.work + self._others_since(ticket), self._serving_s(ticket, now_s))
        self._done_work += ticket.work
        self._drop_pending(ticket)
        ticket.first_s = ticket.seen_s = now_s
        ticket.read_before, ticket.read_per_s = self._done_work, self._work_per_s(now_s)
        ticket.mark = self._pace.reading(now_s)
        self._pace.decoding += 1

    def progress(self, ticket: Ticket, now_s: float, completion_tokens: int) -> None:
        """It goes on, with so many tokens so far: what it shows of the pace need not wait for its end."""
        if ticket.ended or ticket.first_s is None or completion_tokens <= ticket.seen_tokens:
            return
        now_s = self._forward(now_s)
        reading = self._pace.reading(now_s)
        new, shown = completion_tokens - ticket.seen_tokens, self._pace.decoding - self._hidden
        self._pace.learn(now_s, now_s - ticket.seen_s, reading - ticket.mark, new, running=shown)
        ticket.seen_s, ticket.mark, ticket.seen_tokens = now_s, reading, completion_tokens

    def finish(self, ticket: Ticket, now_s: float, completion_tokens: int = 0) -> None:
        """It has ended, whole or not, with so many tokens received.

        Without a first token it teaches only what is certain: if it was given up after longer than its work should
        have taken, then at most that work was done in that time.
        """
        if ticket.ended:
            return
        ticket.ended = True
        now_s = self._forward(now_s)
        if not ticket.watched:
            self._pace.reading(now_s)
            self._pace.decoding -= 1
            self._hidden -= 1
            return
        if ticket.first_s is None:
            waited_s = self._serving_s(ticket, now_s)
            if waited_s * self._work_per_s(now_s) > ticket.work:
                self._learn_rate(now_s, ticket.work, waited_s)
            elif ticket is next(iter(self._pending)):
                # The time since was spent on it; what comes next must not be charged with that.
                self._served_until_s, self._others_served = now_s, self._others_done
            self._drop_pending(ticket)
            return
        expected_tokens = self._pace.reading(now_s) - ticket.mark
        self._pace.decoding -= 1
        new = completion_tokens - ticket.seen_tokens
        self._pace.learn(now_s, now_s - ticket.seen_s, expected_tokens, new)

    def wrote_s(self, ticket: Ticket, now_s: float) -> float:
        """Seconds since its first token, less those that prompts read there since should have taken: a stream stands nearly
        still beside one, however well its endpoint is.
        """
        if ticket.first_s is None:
            return 0.0
        ran_s = max(now_s, self._now_s) - ticket.first_s
        if self._parallel:
            return ran_s
        read = self._done_work - ticket.read_before
        if self._pending:
            head = next(iter(self._pending))
            read += min(head.work, ticket.read_per_s * self._serving_s(head, now_s))
        return max(0.0, ran_s - read / ticket.read_per_s)

    def shared_with(self, running: int, waiting: int, now_s: float) -> None:
        """So many calls that others have sent, who tell us nothing, run and wait there from now on."""
        self._foreign_running, self._foreign_waiting = running, waiting
        self._count_others(now_s)

    def _count_others(self, now_s: float) -> None:
        elsewhere = self._elsewhere
        self._pace.reading(self._forward(now_s))
        self._pace.others = min(self._foreign_running + elsewhere.decoding, MOST_OTHERS)
        self._others_waiting = min(self._foreign_waiting + elsewhere.waiting, MOST_OTHERS)
        self._pace.reading_prompts = not self._parallel and bool(self._pending or elsewhere.waiting)

    def said(self, now_s: float) -> tuple[int, int, float, float, float, float, float, float, float, float]:
        """What other gateways are told of calls here: see `gossip.Standings`, from `waiting` on."""
        now_s = max(now_s, self._now_s)
        _, pending = self._own_queue(now_s)
        sent_work, sent = self._sent.sums(now_s)
        return (
            len(self._pending),
            self._pace.decoding,
            pending,
            self._done_work,
            sent_work * _PER_S_OF_SUM,
            sent * _PER_S_OF_SUM,
            *self._rate.sums(now_s),
            *self._pace.seen(now_s),
        )

    def heard_of(self, said: Sequence[Standings], done_work: float, now_s: float) -> None:
        """What they have told, all of them together; and so much work has been done since for one of them."""
        self._elsewhere = elsewhere = together(said)
        self._others_done += done_work
        self._pace.elsewhere = elsewhere.slower_s, elsewhere.guessed_s
        self._count_others(now_s)
        self._known_until_s = float("-inf")

    def _others_since(self, ticket: Ticket) -> float:
        """Work done for other gateways in the time that is counted as spent on this ticket."""
        if self._served_until_s > ticket.start_s + self._base_s:
            return self._others_done - self._others_served
        return self._others_done - ticket.others_done

    def share_read(self, ticket: Ticket, now_s: float) -> float:
        """Share of its prompt, 0 to 1, that should have been read by now where its first token has not come: those before
        it were read first. Of what is not watched, all that is left could be its own.
        """
        now_s = max(now_s, self._now_s)
        if ticket.ended or ticket.first_s is not None or ticket.work <= 0.0:
            return 1.0
        rate = self._work_per_s(now_s)
        if not ticket.watched:
            return max(0.0, 1.0 - self._hidden_left(now_s, rate) / ticket.work)
        done = rate * self._serving_s(ticket, now_s)
        before = list(takewhile(lambda each: each is not ticket, self._pending))
        if before and not self._parallel:
            done = rate * self._serving_s(before[0], now_s) - sum(each.work for each in before)
        return min(1.0, max(0.0, done / ticket.work))

    @property
    def reading(self) -> bool:
        """Whether a prompt of ours is, or may be, being read there."""
        return bool(self._pending) or self._hidden > 0

    def load(
        self, now_s: float, inflight: int, unavailable: str | None = None, retry_after_s: float | None = None
    ) -> Load:
        """What is known of the endpoint now, with what the fleet knows of its health. Changes nothing.

        The oldest pending ticket is evidence by how long it has been pending: up to when it should have come, the time
        is progress on it; from then on it is proof of a lower rate, which half a minute of good rates before does not
        outweigh. That is what finds a stalled worker, or one that has just slowed down, before anything has come back.
        """
        if now_s < self._now_s:
            now_s = self._now_s
        rate, pending = self._own_queue(now_s)
        prior, pace, elsewhere = self._prior, self._pace, self._elsewhere
        pending += elsewhere.pending_work
        if self._parallel:
            itl_s = (prior.step_s + prior.sequence_s) * self._known_slower
            return Load(
                inflight, 0.0, rate, self._base_s, itl_s, 0, 0.0, 0.0, 0.0, unavailable, retry_after_s
            )
        others = pace.others
        inflight += others
        step_s = prior.step_s + prior.sequence_s * (inflight + 1)
        sent_work, sent = self._sent.sums(now_s)
        busy = (sent_work * _PER_S_OF_SUM + elsewhere.sent_work_per_s) / rate
        if busy > MOST_BUSY:
            busy = MOST_BUSY
        return Load(
            inflight + self._others_waiting,
            pending,
            rate,
            self._base_s,
            step_s * self._known_slower,
            pace.decoding + others,
            prior.sequence_s / step_s,
            sent * _PER_S_OF_SUM + elsewhere.sent_per_s,
            busy,
            unavailable,
            retry_after_s,
        )

    def _own_queue(self, now_s: float) -> tuple[float, float]:
        """The rate of prefill, and the work of ours that waits for it."""
        rate, pending = self._work_per_s(now_s), self._pending_work
        if self._pending:
            head = next(iter(self._pending))
            waited_s = self._serving_s(head, now_s)
            if others := max(self._others_since(head), self._others_left(head)):
                waited_s = max(0.0, waited_s - others / rate)
            if waited_s * rate > head.work:
                # It is late, so what was seen before may hold no more, and counts as a guess does; but of a provider's many
                # servers one that is late says little of the others.
                seen_s = self._known_for_s if self._parallel else PRIOR_S
                rate = (seen_s * rate + head.work) / (seen_s + waited_s)
                pending -= head.work
            else:
                pending -= waited_s * rate
            if pending < 0.0:
                pending = 0.0
        if self._hidden:
            hidden_work = self._hidden_work - (now_s - self._hidden_at_s) * rate
            if hidden_work > 0.0:
                pending += hidden_work
        return rate, pending

    def _others_left(self, ticket: Ticket) -> float:
        """Work of other gateways that stood before this ticket, as far as it has been done since what is counted as its time."""
        if self._served_until_s > ticket.start_s + self._base_s:
            return max(0.0, ticket.others_ahead - (self._others_served - ticket.others_done))
        return ticket.others_ahead

    def _forward(self, now_s: float) -> float:
        if now_s > self._now_s:
            self._now_s = now_s
        return self._now_s

    def _serving_s(self, ticket: Ticket, now_s: float) -> float:
        """For how long the endpoint can have been at this ticket: not before it got there, nor while at another."""
        since_s = ticket.start_s + self._base_s
        if since_s < self._served_until_s and not self._parallel:
            since_s = self._served_until_s
        return now_s - since_s if now_s > since_s else 0.0

    def _hidden_left(self, now_s: float, rate: float) -> float:
        left = self._hidden_work - (now_s - self._hidden_at_s) * rate
        return max(0.0, left)

    def _work_per_s(self, now_s: float) -> float:
        """The rate of prefill, as learned; with it the rest of what is known is brought up to date."""
        if now_s >= self._known_until_s or self._peers_learned != self._peers.learned:
            work, seconds = self._rate.sums(now_s)
            work, seconds = work + self._elsewhere.rate_work, seconds + self._elsewhere.rate_s
            guess = self._prior.work_per_s * self._peers.prefill_faster
            self._known_for_s = seconds + PRIOR_S
            self._known_rate = (work + PRIOR_S * guess) / self._known_for_s
            self._known_slower = self._pace.slower(now_s)
            self._known_until_s, self._peers_learned = now_s + HOLDS_S, self._peers.learned
        return self._known_rate

    def _learn_rate(self, now_s: float, work: float, seconds: float) -> None:
        seconds = max(seconds, LEAST_SAMPLE_S)
        share = min(1.0, LONGEST_SAMPLE_S / seconds)
        self._rate.add(now_s, work * share, seconds * share)
        self._peers.prefilled(now_s, work * share / self._prior.work_per_s, seconds * share)
        self._served_until_s, self._others_served = now_s, self._others_done

    def _learn_base(self, ticket: Ticket, now_s: float) -> None:
        if ticket.queued or ticket.work > BASE_WORK:
            return
        seen_s = max(0.0, now_s - ticket.start_s - ticket.work / self._work_per_s(now_s))
        self._base_s = min(seen_s, self._base_s * BASE_RISE + BASE_RISE_S)

    def _drop_pending(self, ticket: Ticket) -> None:
        del self._pending[ticket]
        if not self._pending:
            self._pace.reading(self._now_s)
            self._pace.reading_prompts = not self._parallel and bool(self._elsewhere.waiting)
        # Sums of floats drift; an empty queue is exactly empty.
        self._pending_work = max(0.0, self._pending_work - ticket.work) if self._pending else 0.0
