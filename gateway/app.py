"""The composition root: every part is made here, handed what it needs, and closed in the reverse order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop
from msgspec import structs

from backends.rounds import rounds
from gateway.admin import Administration, Administrators, admin_routes
from gateway.admin_fleet import FleetBoard
from gateway.admin_keys import AdminKeyring
from gateway.admission import Admission
from gateway.auth import ANYONE, Key, Keyring, Ring, follow, refresh
from gateway.beside import Beside
from gateway.cache_salt import CacheSalts
from gateway.callers import Callers
from gateway.catalog import Catalog
from gateway.console.routes import ADMINISTRATORS, TENANTS, ConsoleParts, console_routes
from gateway.console.session import Sessions
from gateway.control import control_app, health_routes, metrics_routes, models_routes
from gateway.cors import Origins
from gateway.decision_log import DecisionLog, RotatingFile
from gateway.desk import Desk
from gateway.discoveries import Discoveries
from gateway.dispatch import Books, Dispatch
from gateway.events import telling
from gateway.fleet import fleet_of
from gateway.gossip import gossiping
from gateway.http import Edge
from gateway.journal import Journal
from gateway.limiting import Limiter, limiting
from gateway.listeners import listeners_of
from gateway.logs import begin_log
from gateway.mover import moving
from gateway.node_store import NodeStore
from gateway.nodes import Nodes
from gateway.own_limits import OwnLimiter
from gateway.own_usage import own_usage_routes
from gateway.planning import Planner
from gateway.policy import policies_of
from gateway.prices import keeping_prices
from gateway.process import need_shared_state, need_shared_state_for, obeying, process_count
from gateway.process_metrics import shared
from gateway.race import Races
from gateway.reload import Parts, Reload, latest, queue_limits
from gateway.server import Server, stopped_by_signals
from gateway.source import Sources
from gateway.store import Store
from gateway.supervisor import Seat, Supervisor
from gateway.telemetry import AdmissionCollector, FleetCollector, Telemetry
from gateway.telemetry_limits import LimitsCollector
from gateway.telemetry_traces import gen_ai_metrics, traces
from gateway.tls import Certificate
from gateway.watch import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from contextlib import AbstractContextManager

    from fastapi import APIRouter

    from backends.fleet import Fleet
    from gateway.config import Config
    from gateway.config_tls import TlsSection
    from gateway.limiting import Limiting
    from gateway.listeners import Listeners
    from gateway.policy import Policies
    from gateway.reload import ConfigFile

log = logging.getLogger(__name__)


def run(config: Config, file: ConfigFile | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. `file` is where `config` came from, to be followed as it changes."""
    begin_log(config.log)
    # What threads do beside the event loop is in no hurry: after half a millisecond, not five, they let it go on.
    sys.setswitchinterval(0.0005)
    processes = process_count(config.server.workers)
    if processes == 1:
        return uvloop.run(serve(config, file=file))
    return _run_one_of(processes, config, file)


def _run_one_of(processes: int, config: Config, file: ConfigFile | None) -> int:
    """This becomes the supervisor of so many, and each of them gets here as well."""
    need_shared_state(config)
    # Garbage that is not there need not be shared; what is there is copied when the collector looks at it.
    gc.collect()
    gc.freeze()
    listeners = listeners_of(config, processes)
    ending_s = float(config.timeouts.unready_s) + float(config.timeouts.drain_s)
    supervisor = Supervisor(listeners, ending_s, _serving(config, listeners))
    seat = supervisor.run()
    if isinstance(seat, int):
        return seat
    begin_log(config.log, seat.number)
    if file is not None and seat.replaces_another:
        config, file = latest(config, file)
    return uvloop.run(serve(config, file=file, seat=seat))


def _spare_the_collector() -> None:
    """Garbage of a call is freed by reference counts; without this, the cycle collector walks all modules again and again
    for nothing, a tenth of the time of a busy gateway.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def serve(
    config: Config,
    on_ready: Callable[[], None] | None = None,
    file: ConfigFile | None = None,
    seat: Seat | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; `on_ready` is called once connections are accepted. `seat` is that of one of several
    processes.
    """

    def ready() -> None:
        if seat is None:
            log.info("%s", _serving(config, listeners))
        else:
            seat.ready()
        if on_ready is not None:
            on_ready()

    _allow_descriptors(config.limits.client_connections)
    async with AsyncExitStack() as stack:
        listeners = listeners_of(config) if seat is None else seat.listeners
        for listener in listeners.all:
            stack.enter_context(listener)
        edge = await stack.enter_async_context(application(config, file, seat))
        admin_ready = asyncio.Event()
        servers = [_server(edge, config, ready)]
        if edge.for_admins is not None:
            servers.append(_server(edge.for_admins, config, admin_ready.set))
        await _show_certificate(stack, config.server.tls, *servers)
        await _show_certificate(stack, config.admin.tls, *servers[1:])
        if seat is not None:
            await stack.enter_async_context(obeying(seat, servers))
        stack.enter_context(stopped_by_signals(servers))
        _spare_the_collector()
        number = 0 if seat is None else seat.number
        async with asyncio.TaskGroup() as serving:
            for admin in servers[1:]:
                serving.create_task(admin.serve(*listeners.admin, number=number), name="administration")
                await admin_ready.wait()
            await servers[0].serve(*listeners.calls, number=number)
    return 0


def _server(edge: Edge, config: Config, on_ready: Callable[[], None]) -> Server:
    server = Server(
        edge,
        drain_s=float(config.timeouts.drain_s),
        unready_s=float(config.timeouts.unready_s),
        header_limit_bytes=config.limits.header_bytes,
        most_connections=config.limits.client_connections,
        body_limit_bytes=config.limits.body_bytes,
        on_ready=on_ready,
    )
    server.take_times(config.timeouts)
    return server


async def _show_certificate(stack: AsyncExitStack, section: TlsSection | None, *servers: Server) -> None:
    """Where there is one; kept in step with its files for as long as `stack` stands."""
    if section is not None:
        certificate = Certificate(section)
        for server in servers:
            server.tls = certificate.context
        looking = rounds(lambda _: certificate.look(), 1.0, "looking at the certificate")
        await stack.enter_async_context(looking)


def _serving(config: Config, listeners: Listeners) -> str:
    """Where, in words."""
    said = "serving on {}://{}:{}".format(config.server.scheme, *listeners.calls[0].getsockname()[:2])
    for listener in listeners.admin[:1]:
        said += " and for administrators on {}://{}:{}".format(
            config.admin_scheme, *listener.getsockname()[:2]
        )
    return said


def _allow_descriptors(client_connections: int) -> None:
    """As many as the system grants: what shells and service managers begin with is 1,024, for the sake of `select`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and most < client_connections:
        log.warning(
            "limits.client_connections is %d, but this process may have only %d open files (ulimit -Hn)",
            client_connections,
            most,
        )


@asynccontextmanager
async def application(
    config: Config, file: ConfigFile | None = None, seat: Seat | None = None
) -> AsyncIterator[Edge]:
    """What answers requests, with all that it stands on; closed when the block is left."""
    async with AsyncExitStack() as stack:
        store = stack.enter_context(Store.open(config.database.get_secret_value()))
        catalog = Catalog(config, int(time.time()))
        policies = policies_of(config, catalog)
        keys, admin_keys = _keys(config, policies, store, seat), AdminKeyring.read(store)
        rings: list[Ring] = [admin_keys, keys] if isinstance(keys, Keyring) else [admin_keys]
        await stack.enter_async_context(_background(follow(store, *rings), "keys"))
        journal = Journal.open(config.journal.folder)
        held = await stack.enter_async_context(limiting(config, catalog, journal, store, alone=seat is None))
        await stack.enter_async_context(moving(journal, store, held.accounts))
        fleet = await stack.enter_async_context(fleet_of(config))
        telemetry = Telemetry(gen_ai_metrics(config.telemetry, os.environ), config.log)
        await stack.enter_async_context(gossiping(config, fleet, seat, journal.owner, telemetry.registry))
        await stack.enter_async_context(telling(config.events, store, telemetry.registry))
        decisions, watch = stack.enter_context(_decisions(config, seat)), Watch()
        planner = Planner(fleet, CacheSalts(store.key_secret()), decisions, watch)
        admission = _admission(config, fleet)
        races = Races(planner, fleet, admission, telemetry, hedge=config.hedge)
        dispatch = Dispatch(
            catalog, planner, admission, fleet, Books(journal, held.open_calls, watch), telemetry, races
        )
        origins, sources = Origins(config.cors.origins), Sources(config.listen.trusted_proxies)
        sessions = Sessions(store.key_secret())
        administrators = Administrators(config, keys, admin_keys, sources, sessions)
        callers, limiter = Callers(keys, sources, sessions), Limiter(held.limits, fleet)
        edge = Edge(dispatch, catalog, callers, origins, telemetry, limiter, administrators.admit_to_plans)
        edge.tracing = stack.enter_context(traces(config.telemetry, os.environ, telemetry.registry))
        nodes = Nodes(fleet, config, NodeStore(store), several=seat is not None)
        await stack.enter_async_context(nodes.watched())
        discoveries = await stack.enter_async_context(Discoveries(fleet, config))
        await stack.enter_async_context(_background(edge.cancel_overdue(), "overdue calls"))
        prices = await stack.enter_async_context(keeping_prices(store, catalog, fleet))
        parts = Parts(fleet, nodes, discoveries, catalog, policies, admission, keys, store, callers, prices)
        reload = Reload(file, config, parts.take)
        found = FleetCollector(fleet, journal, decisions, lambda: edge.running)
        for collector in (AdmissionCollector(admission), LimitsCollector(held.limits), found, reload):
            telemetry.registry.register(collector)
        await stack.enter_async_context(shared(telemetry, seat))
        desk, limits = _desk(store, catalog, policies, held, rings), OwnLimiter(held.limits, store, policies)
        beside = Beside(seat, watch, nodes.everywhere, lambda: edge.running)
        board = FleetBoard(nodes, store, await stack.enter_async_context(beside.telling()))
        about = Administration(administrators, catalog, planner, nodes, desk, limits, board, reload)
        console = ConsoleParts(about, sessions, sources, watch, callers)
        _give_control(edge, config, origins, console, health_routes(fleet), metrics_routes(telemetry))
        await stack.enter_async_context(reload.running())
        yield edge


def _give_control(
    edge: Edge, config: Config, origins: Origins, console: ConsoleParts, health: APIRouter, metrics: APIRouter
) -> None:
    """Decide which routes are where."""
    about, caller = console.about, console.callers.asking
    own = own_usage_routes(about.desk.store, caller, about.limiter)
    for_calls = [models_routes(about.catalog, caller), own, health]
    if config.admin.listen is None:
        app = control_app(admin_routes(about), *for_calls, console_routes(console), metrics)
        edge.control = origins.around(app)
        return
    if config.auth.mode == "keys":  # else no tenant has a key to log in with
        for_calls.append(console_routes(structs.replace(console, roles=TENANTS)))
    edge.control = origins.around(control_app(None, *for_calls))
    for_admins = structs.replace(console, roles=ADMINISTRATORS)
    app = control_app(admin_routes(about), console_routes(for_admins), health, metrics)
    edge.for_admins = edge.without_calls(app)


def _keys(config: Config, policies: Policies, store: Store, seat: Seat | None) -> Keyring | Key:
    if config.auth.mode == "none":
        held_to = policies.in_force(ANYONE)
        return Key(id="", tenant=ANYONE, policy=held_to.policy, bounds=held_to.bounds)
    master_key = config.auth.master_key
    keys = Keyring.read(store, None if master_key is None else master_key.get_secret_value(), policies)
    if seat is not None and not config.shares_state:
        need_shared_state_for(keys)
    return keys


def _desk(store: Store, catalog: Catalog, policies: Policies, held: Limiting, rings: Sequence[Ring]) -> Desk:
    return Desk(
        store,
        lambda request: request.state.actor,
        lambda: catalog.names,
        lambda: policies.configured,
        partial(asyncio.to_thread, refresh, store, *rings),
        held.drift,
    )


def _decisions(config: Config, seat: Seat | None) -> AbstractContextManager[DecisionLog | None]:
    section = config.decision_log
    if section is None:
        return nullcontext()
    path = section.file
    if seat is not None:
        path = path.with_stem(f"{path.stem}-{seat.number}")  # files that rotate have one writer
    file = RotatingFile(path, section.max_bytes, section.keep)
    return DecisionLog(file, section.sample).writing()


def _admission(config: Config, fleet: Fleet) -> Admission:
    return Admission(
        fleet, queue_limits(config), float(config.queue.max_wait_s), float(config.timeouts.total_s)
    )


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
