"""How fast an endpoint makes tokens, learned from streams, and what the endpoints of one model have in common.

What was seen fades with one half-life, and the guess from the card returns by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from routing.gpu import Prior

HALF_LIFE_S = 30.0
"""After this long an observation counts half: long against one prefill, short against a slow-down of minutes."""

PRIOR_S = 2.0
"""Seconds of observation that the guess from the GPU counts for, so that a wrongly declared class is soon forgotten;
10 s proved too strong in simulation."""

PEERS_PRIOR_S = 0.2
"""Seconds of observation that the guesses for a model count for as a whole: what one of its endpoints shows of the model
must at once be believed of the others, or the first to be seen gets all the calls."""

CHUNK_TOKENS = 2048
"""Tokens of a prompt that vLLM reads in one step, which also makes a token for each stream (max_num_batched_tokens). Without
it, who reads most prompts would look slow at making tokens, and the slowest cards would get the calls."""

MOST_FASTER = 0.25
"""Share of the time per token expected of its model's endpoints that one is believed to take at the least. One whose cache is
full of running calls makes their tokens quickly because it cannot read the next prompt, and would look like the best
place for it."""

RECENT_HALF_LIFE_S = 1.5
"""The same of what streams that still run have shown, where it is told while they do."""

FAR_SLOWER = 3.0
"""By so much slower than usual, what streams show just now is believed at once. Half a minute of good pace before would
outweigh it for as long, while every new call is sent where none comes to its end. Less than that is noise: prompts are read in
between, batches change."""

RECENT_PRIOR_S = 0.5
"""Seconds of such observation that the usual pace counts for then."""

BELIEVED_S = 10.0
"""And for so long, unless streams show that it is over."""

LONGEST_SAMPLE_S = 60.0
"""Seconds one observation counts for at most. What took longer (a suspended process, a dead network) says little of
speed, and two half-lives are enough to believe it."""

LEAST_SAMPLE_S = 1e-4
"""Seconds one observation counts for at least: two prompts prefilled in one batch answer together."""


class Sums:
    """Two observed sums, both fading with one half-life."""

    __slots__ = ("_at_s", "_half_life_s", "_over", "_under")

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._over = self._under = 0.0
        self._at_s = float("-inf")

    def add(self, now_s: float, over: float, under: float) -> tuple[float, float]:
        """What they are with these."""
        faded_over, faded_under = self.sums(now_s)
        self._over, self._under, self._at_s = faded_over + over, faded_under + under, now_s
        return self._over, self._under

    def sums(self, now_s: float) -> tuple[float, float]:
        fade = 2.0 ** ((self._at_s - now_s) / self._half_life_s)
        return self._over * fade, self._under * fade


class Peers:
    """By how much the endpoints of one model are faster than guessed, as all of them have shown together.

    The guess is made for a model of eight billion parameters on each card. What a smaller model, a quantized one or a
    faster engine gains, it gains everywhere, and an endpoint not yet seen is as much faster than its guess as those that
    are. Only good news is shared: a stalled endpoint must not make those look bad that could take over, and where all are
    slower than guessed, one not yet seen is tried by itself.
    """

    __slots__ = ("_decoded", "_prefilled", "decode_slower", "learned", "prefill_faster")

    def __init__(self) -> None:
        self._prefilled = Sums()
        self._decoded = Sums()
        self.learned = 0
        """How often something new has been seen."""
        self.prefill_faster = 1.0
        """Factor to the guessed rate of prefill, at least 1."""
        self.decode_slower = 1.0
        """Factor to the guessed time per token, at most 1."""

    def prefilled(self, now_s: float, guessed_s: float, seconds: float) -> None:
        """A prefill that was guessed at `guessed_s` took `seconds`."""
        self.learned += 1
        guessed, took = self._prefilled.add(now_s, guessed_s, seconds)
        self.prefill_faster = max(1.0, (PEERS_PRIOR_S + guessed) / (PEERS_PRIOR_S + took))

    def decoded(self, now_s: float, guessed_s: float, seconds: float) -> None:
        """A stream that was guessed at `guessed_s` took `seconds`."""
        self.learned += 1
        guessed, took = self._decoded.add(now_s, guessed_s, seconds)
        self.decode_slower = min(1.0, (PEERS_PRIOR_S + took) / (PEERS_PRIOR_S + guessed))


class Pace:
    """The decode pace: how much slower streams are than expected of the batch they run in.

    The batch changes while a stream runs, so expectation is kept as a running count: the tokens that a stream there
    since the beginning would have. What a stream should have made is the difference between two readings. Calls that others
    have there are in the batch as well, so that what they take is not put down to the endpoint.
    """

    __slots__ = (
        "_at_s",
        "_expected",
        "_peers",
        "_prior",
        "_recent",
        "_seen",
        "_slow_until_s",
        "_slower_now",
        "decoding",
        "elsewhere",
        "others",
        "reading_prompts",
    )

    def __init__(self, prior: Prior, peers: Peers) -> None:
        self._prior = prior
        self._peers = peers
        self._seen = Sums()
        self._recent = Sums(RECENT_HALF_LIFE_S)
        self._slow_until_s = float("-inf")
        """Until then it is `_slower_now` times as slow as guessed."""
        self._slower_now = 1.0
        self._expected = self._at_s = 0.0
        self.decoding = 0
        self.others = 0
        self.elsewhere = (0.0, 0.0)
        """What other gateways have seen of it: see `seen`."""
        self.reading_prompts = False

    def reading(self, now_s: float) -> float:
        """Tokens expected up to now; call before each change of `decoding` or `others`."""
        if self.decoding:
            prior = self._prior
            step_s = prior.step_s + prior.sequence_s * (self.decoding + self.others)
            if self.reading_prompts:
                step_s += CHUNK_TOKENS / prior.work_per_s
            self._expected += (now_s - self._at_s) / step_s
        self._at_s = now_s
        return self._expected

    def learn(
        self, now_s: float, seconds: float, expected_tokens: float, tokens: int, *, running: int = 0
    ) -> None:
        """`tokens` of a stream took `seconds`, in which `expected_tokens` were expected. Where it is not over, it is one of
        so many `running`.

        What these show together counts for as long as it took, however many they are. If each counted for itself, an
        endpoint with more of them would forget a pause sooner than its equal, and so get still more.
        """
        if tokens <= 0 or expected_tokens <= 0.0 or seconds < LEAST_SAMPLE_S:
            return
        share = min(1.0, LONGEST_SAMPLE_S / seconds)
        guessed_s = tokens * seconds / expected_tokens * share
        observed_s = seconds * share
        among = running or 1
        self._seen.add(now_s, observed_s / among, guessed_s / among)
        self._peers.decoded(now_s, guessed_s / among, observed_s / among)
        if running:
            self._learn_now(now_s, observed_s, guessed_s)

    def _learn_now(self, now_s: float, seconds: float, guessed_s: float) -> None:
        """The same of what has just been: it may be far from what was until now."""
        observed_s, expected_s = self._recent.add(now_s, seconds, guessed_s)
        usual = self._usually_slower(now_s)
        slower = (RECENT_PRIOR_S * usual + observed_s) / (RECENT_PRIOR_S + expected_s)
        if slower > FAR_SLOWER * usual:
            self._slow_until_s, self._slower_now = now_s + BELIEVED_S, slower
        elif slower < FAR_SLOWER / 2.0 * usual:
            self._slow_until_s = float("-inf")

    def seen(self, now_s: float) -> tuple[float, float]:
        """How long streams took of late, and how long they were expected to."""
        return self._seen.sums(now_s)

    def slower(self, now_s: float) -> float:
        """How many times as slow as guessed it is now."""
        return self._slower_now if now_s < self._slow_until_s else self._usually_slower(now_s)

    def _usually_slower(self, now_s: float) -> float:
        observed_s, expected_s = self._seen.sums(now_s)
        observed_s, expected_s = observed_s + self.elsewhere[0], expected_s + self.elsewhere[1]
        guess = self._peers.decode_slower
        return max(MOST_FASTER * guess, (PRIOR_S * guess + observed_s) / (PRIOR_S + expected_s))
