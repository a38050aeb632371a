"""One of several processes of a gateway: what it is told by the supervisor, and what it cannot do by itself.

Calls do not care which process serves them. What all have to agree on is in the database (keys, tenants, nodes, prices, the
ledger), in the configuration file, or, for limits, in Redis. Without Redis limits would hold for each process by itself,
so a configuration with limits is refused; where some are set later, their calls are.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gateway.config_file import ConfigError, Problem
from gateway.policy import prepaid_tenants, tenant_policies
from gateway.supervisor import MESSAGE_BYTES, numbers_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from gateway.auth import Key
    from gateway.config import Config
    from gateway.server import Server
    from gateway.supervisor import Seat

log = logging.getLogger(__name__)

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def process_count(workers: int | Literal["auto"]) -> int:
    """How many processes; `auto`: one for each core that this one may use."""
    return _cores() if workers == "auto" else workers


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def need_shared_state(config: Config) -> None:
    """Raises ConfigError where the configuration has limits that several processes would not share."""
    if not config.shares_state:
        _refuse(_limited_in(config))


def need_shared_state_for(keys: Iterable[Key]) -> None:
    """The same of limits that the database has."""
    _refuse(sorted({f"key {key.id} of tenant {key.tenant}" for key in keys if key.bounds}))


def _refuse(limited: Iterable[str]) -> None:
    problems = [
        Problem(
            "server.workers",
            f"several processes share limits only in Redis, and {what} has some: "
            "set shared_state to redis://HOST:PORT/NUMBER, or workers to 1",
        )
        for what in limited
    ]
    if problems:
        raise ConfigError(tuple(problems))


def _limited_in(config: Config) -> Iterator[str]:
    prepaid = prepaid_tenants(config)
    for tenant, policy in tenant_policies(config).items():
        if policy.limits or tenant in prepaid:
            yield f"tenants.{tenant}"


@asynccontextmanager
async def obeying(seat: Seat, servers: Sequence[Server]) -> AsyncIterator[None]:
    """Do what the supervisor says, as long as the block runs."""
    task = asyncio.create_task(_obey(seat, servers), name="the supervisor's word")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _obey(seat: Seat, servers: Sequence[Server]) -> None:
    loop = asyncio.get_running_loop()
    seat.control.setblocking(False)
    while said := await loop.sock_recv(seat.control, MESSAGE_BYTES):
        for server in servers:
            await server.accept_from(numbers_in(said))
    if not any(server.leaving for server in servers):
        log.error("the supervisor is gone: running calls are finished, and then this process ends")
        for server in servers:
            server.stop()
