"""An endurance run: what is to befall which parts, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from loadtest.reckoning import Reckoning

Step = Literal["replicas", "redis", "redis emptied", "postgresql"]
MEANINGS: dict[Step, str] = {
    "replicas": "one replica after the other gets SIGTERM and is started anew",
    "redis": "Redis is killed and started anew, with its data",
    "redis emptied": "the same, without its data",
    "postgresql": "PostgreSQL is stopped for a while",
}


class Plan(Struct, frozen=True):
    seconds: float
    steps: tuple[tuple[float, Step], ...] = ()
    """When each is due; the next begins when one is over."""
    clients: int = 40
    replicas: int = 2
    processes: int = 2
    workers: int = 8
    kill_every_s: float = 30.0
    """A worker, on average, which comes back after as long or more."""
    database_away_s: float = 60.0
    unready_s: float = 4.0
    """How long a replica takes calls after SIGTERM: by then the balancer has to have seen that it is not ready."""
    budget_usd: float = 0.005
    chats: int = 40
    tokens: tuple[int, int] = (10, 60)
    decode_s_per_token: float = 0.03
    timeout_s: float = 120.0
    seed: int = 1

    @classmethod
    def of(cls, minutes: float, clients: int, seed: int) -> Plan:
        """Replicas are restarted all the time: each two minutes of fifteen. Between, Redis and PostgreSQL are."""
        seconds, half_s = 60 * minutes, max(10.0, 60 * minutes / 15)
        between: tuple[Step, ...] = ("redis", "postgresql", "redis emptied")
        steps: list[tuple[float, Step]] = []
        for number in range(round(seconds / (2 * half_s))):
            at_s = (2 * number + 0.5) * half_s
            steps.append((at_s, "replicas"))
            if number < len(between):
                steps.append((at_s + half_s, between[number]))
        return cls(
            seconds,
            tuple(steps),
            clients,
            kill_every_s=max(5.0, seconds / 30),
            database_away_s=max(5.0, seconds / 15),
            budget_usd=round(minutes * clients * 1e-5, 6),
            seed=seed,
        )


class Outcome(Struct, frozen=True):
    plan: Plan
    seconds: float
    calls: int
    answered: int
    streams: int
    embeddings: int
    turns: int
    """Answered calls with turns before them."""
    left: int
    """Whose clients did not wait for all of the answer."""
    refused: dict[str, int]
    """Rightly, by tenant and code."""
    failures: tuple[str, ...]
    sent_again: int
    carried_out: dict[str, int]
    """Of what befell the parts."""
    longest_silence_s: float
    reckoning: Reckoning
    left_behind: tuple[str, ...]
    first_peak_mb: float
    """The most that a replica took before it was first restarted, and the last of each."""
    last_peak_mb: float
    doubts: tuple[str, ...]

    @property
    def wrong(self) -> tuple[str, ...]:
        return (*self.failures, *self.reckoning.wrong, *self.left_behind)
