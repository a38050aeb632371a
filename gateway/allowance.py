"""What one process may use of an account, decided without I/O: a slice of it, on lease from where the account is kept.

An account is one limit of one subject. Of each it holds that what is spent and all that is on lease never exceed the limit;
so whoever takes from a slice need ask nobody. There are three kinds:

- rate: requests or tokens per minute. What is spent drains away at the limit's own pace, which is GCRA with a burst of the
  whole minute's limit. What a call takes is spent at once; if it used less, or more, that is put right when it ends.
- calls: how many may be under way. What a call takes comes back when it ends.
- usd: a budget, in nano-USD. What a call takes is held until its charge is known. From then on the charge is owed, until
  the ledger has it and says so in what is spent.

Everything is integers, and time is an argument.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Kind = Literal["rate", "calls", "usd"]

MINUTE_NS = 60_000_000_000
RECALLED_NS = 1_000_000_000
"""How long nothing is kept to spare after somebody else was short."""


class Ask(Struct, frozen=True, gc=False):
    """What a process says of one account, and what it would like to have of it on lease, all together.

    Every figure but a rate's `spent` is a whole and no difference: said twice, or to a store that has lost its memory, it
    means the same.
    """

    account: str
    kind: Kind
    limit: int
    spent: int
    """Of a rate: since it was last said. Of a budget: what the ledger has. Of calls: nothing."""
    had: int
    """Already on lease. It is not taken away, whatever the store remembers of it."""
    need: int
    """Less than this is of no use: nothing more is then given. No more than `had` where nobody waits."""
    wanted: int
    """Where it is less than `had`, the rest is given back."""


class Grant(Struct, frozen=True, gc=False):
    """What came of it."""

    lease: int
    spent: int
    """By all, as the store knows it; of a rate rounded up."""
    others: int
    """On lease to others."""
    settling_ms: int = 0
    """Nothing more is given before: the store is new to us, or to all, and somebody may still have to say what he has."""


class Slice:
    """What this process may use of one account."""

    __slots__ = (
        "_asked",
        "_others",
        "_over",
        "_read",
        "_said",
        "_seen_ns",
        "_taken",
        "_taken_before",
        "account",
        "held",
        "kind",
        "lease",
        "limit",
        "owed",
        "recalled_ns",
        "settling_ms",
        "spent",
        "touched",
        "used",
    )

    def __init__(self, account: str, kind: Kind, limit: int, spent: int = 0) -> None:
        self.account = account
        self.kind = kind
        self.limit = limit
        self.lease = 0
        """Of a rate: what is left of it. Of the others: all of it, with what is held and owed."""
        self.held = 0
        """For calls under way."""
        self.owed = 0
        """Charged, and not yet in the ledger as far as is known here."""
        self.used = 0
        """Of a rate: spent and not yet said."""
        self.spent = spent
        """By all, as the ledger or the store last said."""
        self._read = spent
        """Of a budget, as the ledger last said to us: what we say to the store, which is not to hear its own words again."""
        self.recalled_ns = -RECALLED_NS
        """When somebody else was short of it."""
        self.settling_ms = 0
        """In how long the store may give more, where it is new."""
        self.touched = False
        """Whether there is something to say to the store."""
        self._over = 0
        """Of what is held, leased by a higher limit: when it comes back it is not free."""
        self._asked = self._said = 0
        self._others = self._seen_ns = 0
        self._taken = self._taken_before = 0

    @property
    def free(self) -> int:
        return self.lease - self.held - self.owed

    @property
    def _bound(self) -> int:
        """Of what is on lease: what is not free."""
        return 0 if self.kind == "rate" else self.held + self.owed

    def limited(self, limit: int) -> None:
        """From now on that is the limit. Where it is lower, what is free was leased by another, and is not taken from."""
        if limit < self.limit:
            self.lease = min(self.lease, self._bound)
            self._over = self.held
        self.limit, self.touched = limit, True

    def take(self, amount: int) -> None:
        """Of what is free; more than that only where limits are to be let go."""
        self._taken += amount
        self.touched = True
        if self.kind == "rate":
            self.lease -= amount
            self.used += amount
        else:
            self.held += amount

    def settle(self, taken: int, real: int) -> None:
        """A call that has taken so much has ended and used so much."""
        self.touched = True
        if self.kind == "rate":
            more = real - taken
            self.used += more
            # What was not used goes back to the account: of what has drained away there, nothing can come back.
            self.lease -= max(0, more)
        else:
            self.held -= taken
            used = real if self.kind == "usd" else 0
            if used:
                self.owed += used
            if self._over:
                over = min(self._over, taken)
                self._over -= over
                self.lease -= max(0, min(over, taken - used))

    def in_ledger(self, charged: int, spent: int) -> None:
        """The ledger has so much of what was owed, and so much in all. Not while the store is being asked."""
        self.touched = True
        self.owed -= charged
        self.lease -= charged  # which has covered it until now
        self._read = spent
        self.spent = max(self.spent, spent)

    @property
    def others(self) -> int:
        """What they had on lease when the store last spoke."""
        return self._others

    def left(self, now_ns: int) -> int:
        """Of the limit, beside what others have on lease, as far as is known here."""
        if self.kind == "rate":
            return max(0, self._left_of_rate(now_ns) // MINUTE_NS)
        return max(0, self.limit - self.spent - self._others - self.held - self.owed)

    def left_and_reset(self, now_ns: int) -> tuple[int, int]:
        """Of a rate: what is left, and in how many nanoseconds all of it will be."""
        left = self._left_of_rate(now_ns)
        return max(0, left // MINUTE_NS), max(0, -((left - self.limit * MINUTE_NS) // self.limit))

    def until_ns(self, amount: int, now_ns: int) -> int:
        """Until so much is left of a rate, if nothing else is taken."""
        return max(0, -(-(amount * MINUTE_NS - self._left_of_rate(now_ns)) // self.limit))

    def _left_of_rate(self, now_ns: int) -> int:
        """Times MINUTE_NS, of which `limit` drains in a nanosecond."""
        drained = self.limit * (now_ns - self._seen_ns)
        unspent = min(self.limit * MINUTE_NS, (self.limit - self.spent - self._others) * MINUTE_NS + drained)
        return unspent - self.used * MINUTE_NS

    # With the store

    @property
    def idle(self) -> bool:
        """Whether nothing is in it and nothing has been taken from it of late."""
        return not (self.held or self.owed or self.used or self.touched or self._taken or self._taken_before)

    @property
    def due(self) -> bool:
        """Whether the store is to be asked again: it is to be told something, or would be given back what is not needed."""
        return self.touched or (self.lease > 0 and self.free > 2 * max(self._taken, self._taken_before))

    def tick(self) -> None:
        """Some time has passed: as much as was taken meanwhile is kept ready for the next."""
        self._taken_before, self._taken = max(self._taken, self._taken_before // 2), 0

    def ask(self, waiting: int, now_ns: int, spare: int | None = None, *, least: int | None = None) -> Ask:
        """For calls that wait for so much, the most modest of them for `least`, and for those to come: twice what was taken
        of late, or `spare`.

        What is given back by it is gone from now on. One question at a time: the next after `granted` or `unanswered`.
        """
        self.touched = False
        if spare is None:
            recalled = now_ns - self.recalled_ns < RECALLED_NS
            spare = 0 if recalled else 2 * max(self._taken, self._taken_before)
        bound = self._bound
        need = bound + (waiting if least is None else least)
        most = self.limit if self.kind == "rate" else self.limit - self.spent
        wanted = max(need, min(bound + waiting + spare, most))
        had = max(0, self.lease)
        self.lease = min(self.lease, wanted)
        self._asked = self.lease
        spent = self._read
        if self.kind == "rate":
            spent = self._said = self.used
            self.used = 0
        return Ask(self.account, self.kind, self.limit, spent, had, need, wanted)

    def granted(self, grant: Grant, now_ns: int) -> None:
        self.lease += grant.lease - self._asked
        self._others, self._seen_ns = grant.others, now_ns
        self.settling_ms = grant.settling_ms
        self.spent = max(self._read, grant.spent) if self.kind == "usd" else grant.spent

    def unanswered(self) -> None:
        """The store is away: what it was told of a rate is to be told again."""
        self.touched = True
        if self.kind == "rate":
            self.used += self._said
