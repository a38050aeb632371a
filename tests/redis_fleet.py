"""Several real Redis servers that stand in for each other: a primary and its replica that Sentinels look after, or a cluster."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.crc import key_slot

from loadtest.redis_server import Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

LIMIT_S = 60
SERVICE = "tides"
PASSWORD, SENTINEL_PASSWORD = "high-water", "low-water"
SLOT = key_slot(b"{tidegate}")


def until(true: Callable[[], object]) -> None:
    ends_s = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Member(Server):
    """One of several, with a password."""

    def __init__(self, path: str, stack: ExitStack, folder: Path, *options: str) -> None:
        locked = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        super().__init__(path, None, "--dir", str(folder), *locked, *options)
        self.start()
        stack.callback(self.stop)

    def client(self) -> Redis:
        return Redis(port=self.port, password=PASSWORD, decode_responses=True)

    def said(self, *words: str) -> Any:
        with Redis(port=self.port, password=PASSWORD, protocol=2) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def follows_somebody(self) -> bool:
        return b"master_link_status:up" in self.said("INFO", "replication")


class Sentinel(Server):
    """Who knows the others from the start: finding them by itself takes it seconds."""

    def __init__(self, path: str, folder: Path) -> None:
        super().__init__(path)
        self.id = secrets.token_hex(20)
        self._file = folder / f"sentinel-{self.port}.conf"

    def watch(self, primary: Server, replica: Server, others: list[Sentinel]) -> None:
        known = "".join(
            f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other.port} {other.id}\n"
            for other in others
            if other is not self
        )
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\nrequirepass {SENTINEL_PASSWORD}\nloglevel warning\n"
            f"sentinel myid {self.id}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2\nsentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 5000\n"
            f"sentinel known-replica {SERVICE} 127.0.0.1 {replica.port}\n{known}"
        )
        self.start()

    def command(self) -> list[str]:
        return [self._path, str(self._file), "--sentinel"]

    def client(self) -> Redis:
        return Redis(port=self.port, password=SENTINEL_PASSWORD, decode_responses=True)

    def is_ready(self) -> bool:
        """To fail over: it has looked at the replica, and the others are there."""
        with self.client() as client:
            (replica,) = client.sentinel_slaves(SERVICE)
            usable = client.execute_command("SENTINEL", "CKQUORUM", SERVICE)
        return replica["master-link-status"] == "ok" and "OK" in str(usable)

    def names(self) -> int:
        """The port of the primary."""
        with self.client() as client:
            return int(client.sentinel_get_master_addr_by_name(SERVICE)[1])


class Watched:
    """A primary and a replica that three Sentinels look after."""

    def __init__(self, path: str, folder: Path, stack: ExitStack) -> None:
        at_once = (
            "--repl-diskless-sync-delay",
            "0",
        )  # by default, a primary waits five seconds for more replicas
        self.primary = Member(path, stack, folder, *at_once)
        following = ("--replicaof", f"127.0.0.1 {self.primary.port}")
        self.replica = Member(path, stack, folder, *at_once, *following)
        until(self.replica.follows_somebody)
        self.sentinels = [Sentinel(path, folder) for _ in range(3)]
        for sentinel in self.sentinels:
            sentinel.watch(self.primary, self.replica, self.sentinels)
            stack.callback(sentinel.stop)
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0?sentinel_password={SENTINEL_PASSWORD}"

    def be_ready(self) -> None:
        """To fail over."""
        for sentinel in self.sentinels:
            until(sentinel.is_ready)

    def kill_primary(self) -> None:
        """Once they are ready to fail over, which they do after a second."""
        self.be_ready()
        self.now().stop()

    def now(self) -> Member:
        """The primary."""
        return self.primary if self.sentinels[0].names() == self.primary.port else self.replica

    def client(self) -> Redis:
        return self.now().client()


class Node(Member):
    """Of a cluster."""

    def __init__(self, path: str, stack: ExitStack, folder: Path, *options: str) -> None:
        self.bus = free_port()
        home = folder / f"node-{self.bus}"
        home.mkdir()
        words = f"--cluster-enabled yes --cluster-port {self.bus} --cluster-node-timeout 1000"
        super().__init__(path, stack, home, *words.split(), "--repl-diskless-sync-delay", "0", *options)
        self.id = self.said("CLUSTER", "MYID").decode()


class Cluster:
    """Three primaries; the one that our keys are in has a replica."""

    def __init__(
        self, path: str, folder: Path, stack: ExitStack, *options: str, replicas: bool = True
    ) -> None:
        self.primaries = [Node(path, stack, folder, *options) for _ in range(3)]
        hosts = [f"127.0.0.1:{each.port}" for each in self.primaries]
        self._cli("--cluster", "create", *hosts, "--cluster-yes")
        for each in self.primaries:
            until(lambda each=each: b"cluster_state:ok" in each.said("CLUSTER", "INFO"))
        self.replica: Node | None = None
        if replicas:
            self._replicate(Node(path, stack, folder, *options))
        # The first alone: the others are found by what it says.
        self.url = f"redis+cluster://:{PASSWORD}@{hosts[0]}"

    def _replicate(self, replica: Node) -> None:
        owner = self.owner()
        replica.said("CLUSTER", "MEET", "127.0.0.1", str(owner.port), str(owner.bus))
        until(lambda: owner.id.encode() in replica.said("CLUSTER", "NODES"))
        replica.said("CLUSTER", "REPLICATE", owner.id)
        until(replica.follows_somebody)
        for each in self.primaries:
            until(lambda each=each: b"slave" in each.said("CLUSTER", "NODES"))
        self.replica = replica

    def owner(self) -> Node:
        """The primary of our keys."""
        living = [each for each in (*self.primaries, self.replica) if each is not None and each.answers()]
        for first, last, (_, port, *_), *_ in living[0].said("CLUSTER", "SLOTS"):
            if first <= SLOT <= last:
                return next(each for each in living if each.port == port)
        raise AssertionError("nobody has our slot")

    def kill_primary(self) -> None:
        """That of our keys. Its replica takes its place after a second or some."""
        self.owner().stop()

    def move_slot(self) -> Node:
        """To another primary, which is returned."""
        source = self.owner()
        target = next(each for each in self.primaries if each is not source)
        target.said("CLUSTER", "SETSLOT", str(SLOT), "IMPORTING", source.id)
        source.said("CLUSTER", "SETSLOT", str(SLOT), "MIGRATING", target.id)
        while keys := source.said("CLUSTER", "GETKEYSINSLOT", str(SLOT), "10"):
            source.said(
                "MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "AUTH", PASSWORD, "KEYS", *keys
            )
        for each in (target, source, *self.primaries):
            each.said("CLUSTER", "SETSLOT", str(SLOT), "NODE", target.id)
        return target

    def client(self) -> Redis:
        return self.owner().client()

    def _cli(self, *words: str) -> None:
        command = ["redis-cli", "--no-auth-warning", "-a", PASSWORD, *words]
        done = subprocess.run(command, capture_output=True, check=False, timeout=LIMIT_S)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
