"""What `tidegate doctor` looks at: all that a gateway with this configuration would stand on, asked before it does.

Nothing is changed anywhere: what is written to find out whether it can be is taken back, and a database is not migrated.
Each finding says what to do about it, and none quotes a secret.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import shutil
import socket
import ssl
import tempfile
from typing import TYPE_CHECKING

import httpx2

from backends.checkup import Finding, Within, checkup
from backends.discovery import addresses_of
from backends.litellm_api import LiteLLMAccess
from gateway.doctor_events import webhook_findings
from gateway.doctor_state import database_findings, redis_findings
from gateway.fleet import access_of
from gateway.open_calls import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from pathlib import Path

    from backends.checkup import Level
    from gateway.config import Config
    from gateway.config_endpoint import EndpointSection
    from gateway.config_listen import Address
    from routing.types import Endpoint, Price

AT_ONCE = 32
"""Endpoints asked at the same time."""
LEAST_SECRET = 16
"""Characters of a master key, below which it can be guessed."""
LITTLE_BYTES, TOO_LITTLE_BYTES = 1 << 30, 64 << 20
"""Free where the journal is: an hour of many calls, and a few segments."""
BESIDE = 256
"""Descriptors of the gateway beside those of clients and endpoints: files, the database, Redis."""
_ASK_S = 3.0


async def examine(config: Config) -> list[Finding]:
    """Everything, in the order in which a gateway would come to need it."""
    here = await asyncio.to_thread(lambda: [*_machine(config), *_folders(config)])
    listening, for_admins, database, redis, webhooks, *endpoints = await asyncio.gather(
        _listening("listen", config.listen, config.server.scheme),
        _listening("admin.listen", config.admin.listen, config.admin_scheme),
        asyncio.to_thread(lambda: list(database_findings(config))),
        redis_findings(config),
        webhook_findings(config),
        *_endpoints(config),
    )
    found = [*_access(config), *listening, *for_admins, *here, *database, *redis, *webhooks]
    return found + [finding for findings in endpoints for finding in findings]


def _access(config: Config) -> Iterator[Finding]:
    auth = config.auth
    if auth.mode == "none" and not config.listen.is_loopback:
        yield Finding(
            "auth",
            "warning",
            f"whoever reaches {config.listen.host} may call, and nobody is billed",
            "set auth.mode: keys, unless something in front of the gateway asks who calls",
        )
    elif auth.master_key is None and auth.mode == "keys":
        yield Finding(
            "auth",
            "ok",
            "no master key: administration over HTTP takes an admin key (tidegate admin-keys create)",
        )
    if auth.master_key is not None and len(auth.master_key.get_secret_value()) < LEAST_SECRET:
        yield Finding(
            "auth.master_key",
            "warning",
            f"it has fewer than {LEAST_SECRET} characters, and can be guessed",
            'make one by: python3 -c "import secrets; print(secrets.token_urlsafe(32))"',
        )


async def _listening(key: str, listen: Address | None, scheme: str) -> list[Finding]:
    """Whether the address of that key can be taken, or a gateway has it already."""
    if listen is None:
        return []
    where = f"{listen.host}:{listen.port}"
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, _, _, address = infos[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return [await _who_listens(key, where, scheme, str(address[0]), listen.port)]
        advice = f"{key}.host has to be an address of this machine; ports below 1024 take a privilege"
        return [Finding(key, "error", f"cannot listen on {where}: {error.strerror}", advice)]
    return [Finding(key, "ok", f"{where} is free")]


async def _who_listens(key: str, where: str, scheme: str, host: str, port: int) -> Finding:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    base = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    anybody = ssl.SSLContext(
        ssl.PROTOCOL_TLS_CLIENT
    )  # its certificate is for a name, and nothing secret is sent
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        async with httpx2.AsyncClient(verify=anybody, trust_env=False, timeout=_ASK_S) as client:
            reply = await client.get(f"{base}/health/live")
            ours = reply.status_code == 200 and reply.json() == {"status": "ok"}
    except (httpx2.HTTPError, ValueError):
        ours = False
    if ours:
        return Finding(key, "ok", f"a gateway serves on {where} already")
    advice = f"end what listens there (ss -ltnp shows it), or choose another {key}.port"
    return Finding(key, "error", f"another program listens on {where}", advice)


def _machine(config: Config) -> Iterator[Finding]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = config.limits
    endpoints = sum(len(model.endpoints) for model in config.models.values())
    need = limits.client_connections + min(
        limits.client_connections, endpoints * limits.connections_per_endpoint
    )
    need += BESIDE if config.admin.listen is None else BESIDE + limits.client_connections
    if most != resource.RLIM_INFINITY and most < need:
        yield Finding(
            "ulimit -n",
            "warning",
            f"a process may have {most} open files, and limits.client_connections of {limits.client_connections} "
            f"may take {need}",
            "raise the hard limit (LimitNOFILE= of systemd, --ulimit nofile= of Docker), or lower "
            "limits.client_connections",
        )
    else:
        yield Finding("ulimit -n", "ok", "open files are allowed for all connections that may be")


def _folders(config: Config) -> Iterator[Finding]:
    yield from _writable("journal", config.journal.folder)
    if config.journal.folder.is_dir():
        yield from _left_over(config.journal.folder)
    if config.decision_log is not None:
        yield from _writable("decision_log", config.decision_log.file.absolute().parent)


def _writable(about: str, folder: Path) -> Iterator[Finding]:
    """Whether it is there, or could be made; and whether there is room."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        whose = f"uid {os.geteuid()}"
        advice = f"let {whose} write there, or name another folder"
        yield Finding(about, "error", f"{there} cannot be written: {error.strerror}", advice)
        return
    room = f"{free / (1 << 30):.1f} GiB are free in {there}"
    if free < LITTLE_BYTES:
        level: Level = "error" if free < TOO_LITTLE_BYTES else "warning"
        yield Finding(about, level, room, "make room: usage waits there while the database is away")
    else:
        yield Finding(about, "ok", room)


def _left_over(folder: Path) -> Iterator[Finding]:
    """What dead gateways have not got into the database, and what nobody ever will."""
    dead, in_use, size = 0, 0, 0
    for path in [*folder.glob("*.journal"), *folder.glob(f"*{SUFFIX}")]:
        try:
            if _is_locked(path):
                in_use += path.suffix == ".journal"
            else:
                dead, size = dead + 1, size + path.stat().st_size
        except FileNotFoundError:
            continue  # moved meanwhile
        except OSError as error:
            advice = "let the gateway's user read it: it holds what calls have used"
            yield Finding("journal", "error", f"{path} cannot be read: {error.strerror}", advice)
    if dead:
        yield Finding(
            "journal",
            "warning",
            f"{dead} files of gateways that have died wait in {folder}, {size} bytes",
            "start a gateway on this folder: it enters them in the books within a second",
        )
    elif in_use:
        yield Finding("journal", "ok", f"{in_use} files are in use by gateways that run")
    corrupt = sorted(path.name for path in folder.glob("*.corrupt"))
    if corrupt:
        yield Finding(
            "journal",
            "warning",
            f"what the database would not take is in {', '.join(corrupt[:3])}"
            + (f" and {len(corrupt) - 3} more" if len(corrupt) > 3 else ""),
            "look into them: each line is a call that is not in the books; then move them away",
        )


def _is_locked(path: Path) -> bool:
    """Whether the process that made it is alive, which holds its lock."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _endpoints(config: Config) -> Iterator[Awaitable[list[Finding]]]:
    within = Within(float(config.timeouts.connect_s), float(config.health.probe_timeout_s))
    room = asyncio.Semaphore(AT_ONCE)

    async def looked_at(about: str, endpoint: Endpoint, section: EndpointSection) -> list[Finding]:
        access = access_of(section)
        if isinstance(access, LiteLLMAccess):
            return [Finding(about, "ok", "not asked: what litellm is asked, a provider charges for")]
        async with room:
            return await checkup(about, endpoint, access, within)

    for name, model in config.models.items():
        for endpoint, section in zip(config.endpoints_of(name), model.endpoints, strict=True):
            about = f"{name} at {endpoint.name}"
            yield looked_at(about, endpoint, section)
            yield _prices(about, model.price.price(), section)
        for discover in model.discover:
            if discover.dns is not None:
                yield _resolved(name, discover.dns.host)


async def _prices(about: str, charged: Price, section: EndpointSection) -> list[Finding]:
    cost = section.price
    if section.kind == "openai" and section.cost is None:
        advice = "give what it charges as `cost`: routing takes it to be free, and so does the ledger"
        return [Finding(about, "warning", "what it costs us is not known", advice)]
    if cost.input_pico_usd > charged.input_pico_usd or cost.output_pico_usd > charged.output_pico_usd:
        advice = "raise the model's price, or lower the endpoint's cost"
        return [Finding(about, "warning", "serving there costs more than the model's price", advice)]
    return []


async def _resolved(model: str, host: str) -> list[Finding]:
    about = f"{model} by DNS"
    try:
        addresses = await addresses_of(host)
    except OSError as error:
        advice = "correct discover.dns.host; a headless service in Kubernetes has a name for its pods"
        return [Finding(about, "error", f"{host} has no address: {error.strerror or error}", advice)]
    return [Finding(about, "ok", f"{host} has {len(addresses)} addresses, each taken for a worker")]
