"""Taking over a configuration file that has changed, while calls run.

The file is looked at every second, and at once on SIGHUP. One that is not valid changes nothing: what is wrong with it is
logged with its paths, and a metric says so. What can change does so between two calls: models, endpoints, prices, aliases,
tiers, tenants, most limits; a call that has begun keeps what it has begun with. What cannot keeps its value from the start,
and the log names it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, structs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from backends.member import CONFIG
from backends.rounds import rounds
from gateway.admin_config import ConfigShown
from gateway.auth import ANYONE, Keyring
from gateway.config import load
from gateway.config_file import ConfigError, Stamp, stamp_of
from gateway.config_section import Section
from gateway.fleet import listed
from gateway.policy import prepaid_tenants, tenant_policies
from routing.queue import QueueLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Self

    from prometheus_client.core import Metric

    from backends.fleet import Fleet
    from gateway.admission import Admission
    from gateway.auth import Key
    from gateway.callers import Callers
    from gateway.catalog import Catalog
    from gateway.config import Config
    from gateway.discoveries import Discoveries
    from gateway.nodes import Nodes
    from gateway.policy import Policies
    from gateway.prices import PriceBook
    from gateway.store import Store

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the file. It is read when two of them have seen the same, so not while it is being written."""

Outcome = Literal["applied", "unchanged", "invalid"]

FIXED = (
    "server",
    "listen",
    "admin",
    "cors",
    "database",
    "shared_state",
    "auth",
    "journal",
    "timeouts",
    "health",
    "events",
    "decision_log",
    "telemetry",
    "log",
    "hedge",
)
"""Sections that stay as they were at the start: sockets, files, connections and their timers are made of them."""
FIXED_LIMITS = (
    "body_bytes",
    "header_bytes",
    "client_connections",
    "connections_per_endpoint",
    "prefix_pieces",
)
"""The same of `limits`."""
TAKEN = ("limits", "nodes", "queue", "resume", "models", "aliases", "tiers", "tenants")
TAKEN_LIMITS = (
    "reply_bytes",
    "event_bytes",
    "attempts",
    "default_max_tokens",
    "wait_for_budget_s",
    "when_store_is_away",
)
"""Those that change. A test holds that every key is in one of these."""


class ConfigFile(Struct, frozen=True):
    """Where the configuration came from."""

    path: Path
    environ: Mapping[str, str]
    listen: Mapping[str, Any] = {}
    server: Mapping[str, Any] = {}
    """What the command line said of these two."""
    stamp_at_start: Stamp | None = None
    secrets: dict[Path, Stamp | None] = {}
    """The files that values came from when it was last read, as they were then."""

    @classmethod
    def at(
        cls,
        path: Path,
        environ: Mapping[str, str],
        listen: Mapping[str, Any],
        server: Mapping[str, Any] | None = None,
    ) -> Self:
        """The file as it is now, before it is first read."""
        file = cls(path, environ, listen, server or {})
        return structs.replace(file, stamp_at_start=file.stamp())

    def load(self) -> Config:
        return load(self.path, self.environ, self.listen, self.server, self.secrets)

    def stamp(self) -> Stamp | None:
        """What is another one when the file is. A link counts as what it leads to, as Kubernetes swaps links."""
        return stamp_of(self.path)

    def secrets_now(self) -> dict[Path, Stamp | None]:
        return {path: stamp_of(path) for path in self.secrets}


class Parts(Struct, frozen=True):
    """What a change of the configuration reaches."""

    fleet: Fleet
    nodes: Nodes
    discoveries: Discoveries
    catalog: Catalog
    policies: Policies
    admission: Admission
    keys: Keyring | Key
    store: Store
    callers: Callers
    prices: PriceBook

    async def take(self, new: Config) -> None:
        """It takes effect. A model is on offer only once its endpoints are there."""
        if any(each.kind == "litellm" for model in new.models.values() for each in model.endpoints):
            await self.fleet.load_litellm()
        self.fleet.agree(CONFIG, listed(new))
        self.nodes.configure(new)
        self.discoveries.configure(new)
        self.catalog.take(new)
        await self.prices.look()
        self.policies.take(tenant_policies(new), prepaid_tenants(new))
        self.admission.take(queue_limits(new), float(new.queue.max_wait_s))
        if isinstance(self.keys, Keyring):
            self.keys.take_master(new.auth.master_key)
            await asyncio.to_thread(self.keys.read_again, self.store)
        else:
            held_to = self.policies.in_force(ANYONE)
            self.callers.take_key(structs.replace(self.keys, policy=held_to.policy, bounds=held_to.bounds))


def latest(started_with: Config, file: ConfigFile) -> tuple[Config, ConfigFile]:
    """What is in force by now in a gateway that was started with this, and the file as it is."""
    file = structs.replace(file, stamp_at_start=file.stamp())
    try:
        return _with_fixed_of(started_with, file.load()), file
    except ConfigError as error:
        log.error("%s is not taken over, since it is not valid:\n%s", file.path, error)  # noqa: TRY400 - as below
        return started_with, file


def queue_limits(config: Config) -> QueueLimits:
    return QueueLimits(config.queue.calls, config.queue.calls_per_tenant)


class Reload(Collector):
    """Keeps the gateway in step with its file. Where there is none, nothing ever changes."""

    def __init__(
        self, file: ConfigFile | None, started_with: Config, apply: Callable[[Config], Awaitable[None]]
    ) -> None:
        self._file = file
        self._started_with = started_with
        self._in_force: Config | None = started_with
        self._apply = apply
        self._taken = None if file is None else file.stamp_at_start
        self._seen: object = None if file is None else (self._taken, dict(file.secrets))
        self._asked = False
        self._outcomes: Counter[Outcome] = Counter()
        self._valid = True
        self._waiting: tuple[str, ...] = ()

    def shown(self) -> ConfigShown:
        """What is in force, for administrators to see."""
        config = (self._in_force or self._started_with).shown()
        path = None if self._file is None else str(self._file.path)
        return ConfigShown(file=path, valid=self._valid, waiting=list(self._waiting), config=config)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look at the file, and listen to SIGHUP, as long as the block runs."""
        if self._file is None:
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.ask)
        try:
            async with rounds(lambda _: self.look(), LOOK_S, "looking at the configuration file"):
                yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    def ask(self) -> None:
        """Read the file at the next look, whether it has changed or not."""
        self._asked = True

    async def look(self) -> None:
        """Take the file over if it has changed."""
        file = self._file
        if file is None:
            return
        stamp, secrets = file.stamp(), file.secrets_now()
        settled, self._seen = (stamp, secrets) == self._seen, (stamp, secrets)
        changed = stamp != self._taken or secrets != file.secrets
        if self._asked or (settled and stamp is not None and changed):
            self._asked, self._taken = False, stamp
            outcome = await self._take_over(file)
            self._outcomes[outcome] += 1

    async def _take_over(self, file: ConfigFile) -> Outcome:
        try:
            new = await asyncio.to_thread(file.load)
        except ConfigError as error:
            self._valid = False
            log.error("%s is not taken over, since it is not valid:\n%s", file.path, error)  # noqa: TRY400 - what is wrong is in the file, not in our code
            return "invalid"
        self._valid = True
        self._waiting = tuple(_fixed_that_differ(self._started_with, new))
        if self._waiting:
            log.warning("%s: these take a restart: %s", file.path, ", ".join(self._waiting))
        new = _with_fixed_of(self._started_with, new)
        if new == self._in_force:
            log.info("%s: nothing else has changed", file.path)
            return "unchanged"
        # Where it fails half-way, as when the database is away, nobody knows what is in force: the next look takes it up again.
        taken, self._taken, self._in_force = self._taken, None, None
        await self._apply(new)
        self._taken, self._in_force = taken, new
        log.info("%s is taken over", file.path)
        return "applied"

    def collect(self) -> Iterable[Metric]:
        reloads = CounterMetricFamily(
            "tidegate_config_reloads_total",
            "Times that the configuration file was read again, by outcome: applied, unchanged or invalid.",
            labels=["outcome"],
        )
        for outcome, count in self._outcomes.items():
            reloads.add_metric([outcome], count)
        yield reloads
        yield GaugeMetricFamily(
            "tidegate_config_valid",
            "0 where the file that is there now is not valid, and an earlier one is in force.",
            value=self._valid,
        )
        yield GaugeMetricFamily(
            "tidegate_config_keys_waiting",
            "Keys of the configuration whose change takes a restart and has not had one.",
            value=len(self._waiting),
        )


def _with_fixed_of(started_with: Config, new: Config) -> Config:
    """What is not fixed of the new one. Where keys are asked for, the master key is not: it can be rotated."""
    auth = started_with.auth
    if auth.mode == "keys":
        auth = auth.model_copy(update={"master_key": new.auth.master_key})
    limits = new.limits.model_copy(update={key: getattr(started_with.limits, key) for key in FIXED_LIMITS})
    fixed = {key: getattr(started_with, key) for key in FIXED}
    return new.model_copy(update={"limits": limits} | fixed | {"auth": auth})


def _fixed_that_differ(before: Config, after: Config) -> Iterator[str]:
    for key in FIXED:
        for path in _differ(getattr(before, key), getattr(after, key), key):
            if path != "auth.master_key" or before.auth.mode == "none":
                yield path
    for key in FIXED_LIMITS:
        yield from _differ(getattr(before.limits, key), getattr(after.limits, key), f"limits.{key}")


def _differ(before: object, after: object, path: str) -> Iterator[str]:
    """The paths of the keys that are not the same."""
    if isinstance(before, Section) and type(before) is type(after):
        for key in type(before).model_fields:
            yield from _differ(getattr(before, key), getattr(after, key), f"{path}.{key}")
    elif before != after:
        yield path
