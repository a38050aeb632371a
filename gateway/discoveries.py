"""The discoveries of a configuration: each is a source of endpoints for one model, followed as long as it is configured."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from msgspec import Struct
from pydantic import ValidationError

from backends.discovery import RESOLVE_S, DnsNames, Found
from backends.discovery_kubernetes import ApiServer, EndpointSlices, SliceQuery
from backends.rounds import rounds
from gateway.fleet import access_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from backends.discovery import Listener
    from backends.fleet import Fleet, Listed
    from gateway.config import Config
    from gateway.config_discover import DiscoverSection
    from gateway.config_model import ModelSection

log = logging.getLogger(__name__)

AGAIN_S = 5.0
"""After a defect that has ended one."""


class _Followed(Struct):
    section: DiscoverSection
    task: asyncio.Task[None]
    found: tuple[Found, ...] = ()


class Discoveries:
    """Inside its block they run."""

    def __init__(self, fleet: Fleet, config: Config, resolve_s: float = RESOLVE_S) -> None:
        self._fleet = fleet
        self._models: dict[str, ModelSection] = dict(config.models)
        self._resolve_s = resolve_s
        self._followed: dict[tuple[str, int], _Followed] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = [*self._ending, *(each.task for each in self._followed.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def configure(self, config: Config) -> None:
        """These are the models now: what is not configured any more ends, and its workers leave."""
        self._models = dict(config.models)
        for key, followed in list(self._followed.items()):
            if self._section(key) != followed.section:
                followed.task.cancel()
                self._ending.add(followed.task)
                followed.task.add_done_callback(self._ending.discard)
                del self._followed[key]
                self._fleet.agree(_source(key), {})
            else:
                self._tell(key)
        self._start()

    def _section(self, key: tuple[str, int]) -> DiscoverSection | None:
        model = self._models.get(key[0])
        return model.discover[key[1]] if model is not None and key[1] < len(model.discover) else None

    def _start(self) -> None:
        for name, model in self._models.items():
            for index, section in enumerate(model.discover):
                key = (name, index)
                if key not in self._followed:
                    work = _work(section, self._listener(key), self._resolve_s)
                    task = asyncio.create_task(_for_ever(work), name=f"discovery of {name}")
                    self._followed[key] = _Followed(section, task)

    def _listener(self, key: tuple[str, int]) -> Listener:
        def listener(found: tuple[Found, ...]) -> None:
            self._followed[key].found = found
            log.info("%s: found %s", _source(key), ", ".join(each.name for each in found) or "nobody")
            self._tell(key)

        return listener

    def _tell(self, key: tuple[str, int]) -> None:
        name, _ = key
        model, followed = self._models[name], self._followed[key]
        listed: list[Listed] = []
        for each in followed.found:
            try:
                section = followed.section.endpoint(each)
            except ValidationError as error:
                log.warning("%s: %s cannot be an endpoint: %s", _source(key), each.name, error)
                continue
            endpoint = section.endpoint(name, model.capabilities, model.context_tokens)
            listed.append((endpoint, access_of(section)))
        self._fleet.agree(_source(key), {name: listed})
        # Who terminates does not come back; that an operator has one drain that does not terminate stays as it is.
        draining = {each.name for each in followed.found if each.draining}
        for member in self._fleet.members:
            if member.source == _source(key) and member.endpoint.name in draining and not member.draining:
                member.depart(None, draining=True)


def _source(key: tuple[str, int]) -> str:
    return f"{key[0]}.discover[{key[1]}]"


def _work(
    section: DiscoverSection, listener: Listener, resolve_s: float
) -> Callable[[], AbstractAsyncContextManager[None]]:
    """What follows it inside a block."""
    dns, kubernetes = section.dns, section.kubernetes
    if dns is not None:
        names = DnsNames(dns.host, dns.port, dns.scheme, listener)
        return lambda: rounds(lambda _: names.look(), resolve_s, names.name)
    if kubernetes is None:
        raise AssertionError("the configuration has one of the two")
    query = SliceQuery(kubernetes.resolved_namespace, kubernetes.labels, kubernetes.port, kubernetes.scheme)
    slices = EndpointSlices(ApiServer(*kubernetes.server), query, listener)
    return lambda: rounds(lambda _: slices.run(), AGAIN_S, slices.name)


async def _for_ever(work: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(work())
        await asyncio.Event().wait()
