"""The servers a bench compares: how each is found, configured and started in front of the same upstreams.

Everybody gets what their own documentation recommends for this use, and nothing that only helps in benchmarks. What is
not installed is left out by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import httpx2
from msgspec import Struct

from gateway.telemetry_traces import is_installed
from loadtest.mock import TRACES_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_STOP_S = 10.0
MASTER_KEY = "sk-bench-master"
"""Of Tidegate."""
_TENANT = "bench"
"""Whose key clients present to it."""


class Setting(Struct, frozen=True):
    """Where a proxy is to run and what is behind it."""

    upstreams: tuple[str, ...]
    """Base URLs without /v1."""
    model: str
    """The name clients use."""
    served_model: str
    """Its name at the upstreams."""
    port: int
    folder: Path
    """Its own, for configuration, database and log."""


class Launch(Struct, frozen=True):
    command: tuple[str, ...]
    key: str = "none"
    """What clients present."""
    environment: dict[str, str] = {}


class Proxy(Protocol):
    name: str

    def missing(self) -> str | None:
        """Why it cannot be started here, or None."""

    def prepare(self, setting: Setting) -> Launch:
        """Write its configuration; how it is started."""


class Program:
    """An executable, looked for in the given folders, on PATH, and where Debian keeps daemons."""

    def __init__(self, name: str, folders: Sequence[Path]) -> None:
        path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath), "/usr/sbin"])
        self.name = name
        self.path = shutil.which(name, path=path)

    def missing(self) -> str | None:
        return None if self.path else f"{self.name} is not installed"

    def __str__(self) -> str:
        return self.path or self.name


class Nginx:
    """A bare proxy: the limit of what can be had with no logic at all."""

    def __init__(self, folders: Sequence[Path], *, name: str = "nginx", balance: str = "") -> None:
        self.name = name
        self._balance = balance
        self._program = Program("nginx", folders)

    def missing(self) -> str | None:
        return self._program.missing()

    def prepare(self, setting: Setting) -> Launch:
        folder = setting.folder
        servers = " ".join(f"server {url.removeprefix('http://')};" for url in setting.upstreams)
        places = " ".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(f"""
            daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
            events {{ worker_connections 4096; }}
            http {{
              access_log off; {places}
              keepalive_requests 100000000;
              upstream pool {{ {self._balance} {servers} keepalive 512; keepalive_requests 100000000; }}
              server {{
                listen 127.0.0.1:{setting.port} backlog=1024;
                client_body_buffer_size 256k; client_max_body_size 32m;
                location / {{
                  proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Connection "";
                  proxy_buffering off; proxy_read_timeout 600s;
                }}
              }}
            }}
        """)
        return Launch(
            (str(self._program), "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf")
        )


class RustRouter:
    """sglang-router or vllm-router, choosing by cached prefix, as their makers advise for chat."""

    def __init__(
        self,
        program: str,
        subcommand: tuple[str, ...],
        folders: Sequence[Path],
        *,
        policy: str = "cache_aware",
        name: str | None = None,
    ) -> None:
        self.name = program if name is None else name
        self._subcommand = subcommand
        self._policy = policy
        self._program = Program(program, folders)

    def missing(self) -> str | None:
        return self._program.missing()

    def prepare(self, setting: Setting) -> Launch:
        where = ("--host", "127.0.0.1", "--port", str(setting.port), "--prometheus-port", str(free_port()))
        startup = (
            "--worker-startup-check-interval",
            "1",
        )  # 30 s otherwise, which says nothing about its speed
        return Launch(
            (
                *(str(self._program), *self._subcommand, *where, *startup),
                *("--policy", self._policy, "--log-level", "error", "--worker-urls", *setting.upstreams),
            )
        )


class LiteLlm:
    """The LiteLLM proxy with a master key, and neither database nor callbacks."""

    name = "litellm"

    def __init__(self, folders: Sequence[Path]) -> None:
        self._program = Program("litellm", folders)

    def missing(self) -> str | None:
        return self._program.missing()

    def prepare(self, setting: Setting) -> Launch:
        key = "sk-bench"
        entries = [
            {
                "model_name": setting.model,
                "litellm_params": {
                    "model": f"openai/{setting.served_model}",
                    "api_base": f"{url}/v1",
                    "api_key": "none",
                },
            }
            for url in setting.upstreams
        ]
        config = setting.folder / "litellm.yaml"  # JSON is YAML
        config.write_text(json.dumps({"model_list": entries, "general_settings": {"master_key": key}}))
        where = ("--host", "127.0.0.1", "--port", str(setting.port), "--num_workers", "1")
        offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # or it fetches its price list at import
        return Launch((str(self._program), "--config", str(config), *where), key, offline)


class Tidegate:
    """This gateway: keys, plan over all upstreams, metering, journal, and the books, which nothing switches off."""

    name = "tidegate"

    def __init__(self, timeouts: dict[str, float] | None = None) -> None:
        self.program: tuple[str, ...] = (sys.executable, "-m", "gateway")
        self.environment: dict[str, str] = {}
        self._timeouts = timeouts or {}

    def sections(self, setting: Setting) -> dict[str, Any]:
        """What else there is in its configuration."""
        del setting
        return {}

    def missing(self) -> str | None:
        return None

    def prepare(self, setting: Setting) -> Launch:
        price = {"input": 0.05, "output": 0.10, "cached_input": 0.025}
        cost = {"input": 0.02, "output": 0.04}
        endpoints = [
            {"worker": url, "model": setting.served_model, "cost": cost} for url in setting.upstreams
        ]
        config = setting.folder / "tidegate.yaml"  # JSON is YAML
        config.write_text(
            json.dumps(
                {
                    "listen": {"host": "127.0.0.1", "port": setting.port},
                    "database": f"sqlite:///{setting.folder}/tidegate.db",
                    "journal": {"folder": str(setting.folder / "journal")},
                    "auth": {"mode": "keys", "master_key": MASTER_KEY},
                    "timeouts": self._timeouts,
                    "models": {setting.model: {"price": price, "endpoints": endpoints}},
                    **self.sections(setting),
                }
            )
        )
        create = ("keys", "create", "--tenant", _TENANT, "--config", str(config), "--format", "json")
        made = subprocess.run(  # noqa: S603 - our own program
            (*self.program, *create),
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
        )
        if made.returncode != 0:
            raise DidNotStartError(f"keys create failed: {made.stderr.strip()[-500:]}")
        key = json.loads(made.stdout)[0]["key"]
        return Launch((*self.program, "serve", "--config", str(config)), key, self.environment)


class TidegateOfTwo(Tidegate):
    """The same by two processes, for which it must not be held to one core: `bench --unpinned`."""

    name = "tidegate-2"

    def sections(self, setting: Setting) -> dict[str, Any]:
        del setting
        return {"server": {"workers": 2}}


class BoundedTidegate(Tidegate):
    """The same with every limit there is on its tenant, and budgets of every period: none so narrow that it refuses anything."""

    name = "tidegate-bounded"

    def sections(self, setting: Setting) -> dict[str, Any]:
        del setting
        budgets = dict.fromkeys(("day", "week", "month", "total"), 1_000_000)
        limits = {"requests_per_min": 10**9, "tokens_per_min": 10**12, "concurrency": 10**6}
        return {"tenants": {_TENANT: {"policy": {**limits, "budgets": budgets}}}}


class TracedTidegate(Tidegate):
    """The same with its spans sent to a collector, and OpenTelemetry's metrics beside ours."""

    name = "tidegate-traced"

    def __init__(self, sample: float = 0.01) -> None:
        super().__init__()
        self._sample = sample

    def missing(self) -> str | None:
        return None if is_installed() else "the extra otel is not installed"

    def sections(self, setting: Setting) -> dict[str, Any]:
        collector = f"{setting.upstreams[0]}{TRACES_PATH}"  # the mock, on the load's core
        return {"telemetry": {"otlp": collector, "sample": self._sample, "gen_ai_metrics": True}}


class DidNotStartError(Exception):
    """A proxy that is installed but does not answer. Its text holds the end of its log."""


class Running(Struct, frozen=True):
    """A proxy that answers."""

    name: str
    pid: int
    url: str
    """Base URL, ending in /v1."""
    key: str
    start_s: float
    """From starting the process to its first answer."""


def every_proxy(folders: Sequence[Path]) -> list[Proxy]:
    return [
        Tidegate(),
        TidegateOfTwo(),
        BoundedTidegate(),
        TracedTidegate(),
        Nginx(folders),
        RustRouter("sglang-router", ("launch",), folders),
        RustRouter("vllm-router", (), folders),
        LiteLlm(folders),
    ]


@contextlib.contextmanager
def running(
    proxy: Proxy, setting: Setting, *, core: int | None, patience_s: float = 120.0
) -> Iterator[Running]:
    """`proxy`, started on `core` and answering calls; stopped at the end with all its processes."""
    launch = proxy.prepare(setting)
    log = setting.folder / "log.txt"
    begun_s = time.perf_counter()
    with spawned(launch.command, log=log, core=core, environment=launch.environment) as process:
        url = f"http://127.0.0.1:{setting.port}/v1"
        _await_answer(process, url, launch.key, setting.model, log, patience_s)
        yield Running(proxy.name, process.pid, url, launch.key, time.perf_counter() - begun_s)


@contextlib.contextmanager
def spawned(
    command: Sequence[str], *, log: Path, core: int | None, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, with its output in `log`; it and its children are gone at the end."""
    with log.open("wb") as output, pinned(core):
        process = subprocess.Popen(  # noqa: S603 - commands are ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # the session is its own: whatever is left in it came from this command
        process.wait()


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started inside run on `core`; None: wherever they like."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _await_answer(
    process: subprocess.Popen[bytes], url: str, key: str, model: str, log: Path, patience_s: float
) -> None:
    deadline_s = time.perf_counter() + patience_s
    last = "no connection"
    body = {"model": model, "messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 32}
    with httpx2.Client(timeout=5, headers={"authorization": f"Bearer {key}"}, trust_env=False) as client:
        while time.perf_counter() < deadline_s and process.poll() is None:
            try:
                answer = client.post(f"{url}/chat/completions", json=body)
            except httpx2.TransportError:
                pass
            else:
                if answer.status_code == 200:
                    return
                last = f"status {answer.status_code}: {answer.text[:200]}"
            time.sleep(0.01)
    end = log.read_text(errors="replace")[-1500:]
    raise DidNotStartError(f"{last}; exit code {process.poll()}; its log ends:\n{end}")


def free_port() -> int:
    """A port that was free a moment ago, and that no system gives to anybody by itself: it stays free for a while."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
