"""Connections to the Redis that we share, whichever server of several it is at the moment.

Behind Sentinels that is the primary which they name; in a cluster, the primary of the one slot that all our keys are in.
Whoever connects asks first which it is. So to all else it is one server: after a failover it is found at another address,
and what is known of it then is to be doubted, as after it has been started anew.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ReadOnlyError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as Lost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from gateway.redis_url import Address, RedisUrl

PREFIX = "{tidegate}:"
"""Of all that is ours. In a cluster, what stands in braces keeps it on one server."""
TIMEOUT_S = 1.0
_FIND_S = 0.5
"""To connect to one of several: a dead one is not to keep us from the living until others are given what we have."""
_QUIET_S = 5.0
_AGAIN_S = 0.05
_ASKED_AT_ONCE = 8
_SLOT = key_slot(PREFIX.encode())


def client_of(
    url: RedisUrl,
    *,
    timeout_s: float = TIMEOUT_S,
    arrive: Callable[[Any], Awaitable[None]] | None = None,
    text: bool = True,
) -> Any:
    """Nothing is connected yet. `arrive` is called with each new connection."""
    given: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),  # whoever asks decides what one that is away means
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s if url.kind == "single" else min(timeout_s, _FIND_S),
        "decode_responses": text,
        "legacy_responses": True,
        "redis_connect_func": arrive,
        "db": url.number,
        **url.login,
        **(url.tls or {}),
    }
    by_tls = url.tls is not None
    if url.kind == "single":
        host, port = url.nodes[0]
        given |= {"connection_class": SSLConnection if by_tls else Connection, "host": host, "port": port}
    else:
        find = (_Sentinels if url.kind == "sentinel" else _Cluster)(url).find
        given |= {"connection_class": _FoundSSLConnection if by_tls else _FoundConnection, "find": find}
    return Redis.from_pool(ConnectionPool(**given))


async def asked(redis: Any, question: Callable[[], Awaitable[Any]], within_s: float = TIMEOUT_S) -> Any:
    """The answer, of another server where the one that we know has just handed over to it. Raises RedisError."""
    until_s = time.monotonic() + within_s
    while True:
        try:
            return await question()
        except (MovedError, ReadOnlyError):
            await redis.connection_pool.disconnect(inuse_connections=False)
            if time.monotonic() >= until_s:
                raise
        except (AskError, TryAgainError):  # our slot is being moved: some of the keys are there, some here
            if time.monotonic() >= until_s:
                raise
        await asyncio.sleep(_AGAIN_S)


async def hear(redis: Any, channel: str, take: Callable[[Any], None], *, sharded: bool = False) -> None:
    """Take what is said there. Ends by raising RedisError, OSError or TimeoutError: where the server is not there any more,
    is no longer the one, or says nothing at all.
    """
    async with redis.pubsub() as news:
        await (news.ssubscribe if sharded else news.subscribe)(channel)
        quiet = False
        while True:
            message = await news.get_message(timeout=_QUIET_S)
            if message is None:
                if quiet:
                    raise TimeoutError("it does not answer")
                quiet = True
                await news.ping()
                continue
            quiet = False
            if message["type"] in ("message", "smessage"):
                take(message["data"])
            elif message["type"] == "sunsubscribe":
                raise Lost("the channel has moved")


class _Found:
    """A connection to a server that has to be found first."""

    def __init__(self, *, find: Callable[[], Awaitable[Address]], **given: Any) -> None:
        super().__init__(**given)
        self._find = find

    async def connect(self) -> None:
        self.host, self.port = await self._find()
        await super().connect()  # type: ignore[misc]  # of what it is mixed with


class _FoundConnection(_Found, Connection):
    pass


class _FoundSSLConnection(_Found, SSLConnection):
    pass


class _Sentinels:
    """They know which server is the primary. They may not agree while it changes: the latest has the highest epoch."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url

    async def find(self) -> Address:
        url = self._url
        answers = await _of_all(url.nodes, url.sentinel_login, url.tls, "SENTINEL", "MASTER", url.service)
        known = [dict(zip(each[::2], each[1::2], strict=True)) for _, each in answers]
        latest = max(known, key=lambda each: int(each["config-epoch"]))
        return latest["ip"], int(latest["port"])


class _Cluster:
    """All of its servers know which has which slots."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        self._known: tuple[Address, ...] = ()
        """Primaries that it had when it was last asked: those of the URL may be gone."""

    async def find(self) -> Address:
        url = self._url
        nodes = tuple(dict.fromkeys((*url.nodes, *self._known)))[:_ASKED_AT_ONCE]
        answers = await _of_all(nodes, url.login, url.tls, "CLUSTER", "NODES")
        primaries = [each for node, answer in answers for each in _primaries(answer, node[0])]
        self._known = tuple(dict.fromkeys(each.address for each in primaries))
        owners = [each for each in primaries if each.has_ours]
        if not owners:
            raise Lost(f"no server of the cluster has slot {_SLOT}, where our keys are")
        return max(owners, key=lambda each: each.epoch).address


class _Primary(NamedTuple):
    address: Address
    epoch: int
    has_ours: bool


def _primaries(nodes: str, asked_at: str) -> Iterator[_Primary]:
    """By CLUSTER NODES, a line each: ID 127.0.0.1:6379@16379,NAME FLAGS - PING PONG EPOCH LINK SLOTS..."""
    for line in nodes.splitlines():
        _, place, flags, _, _, _, epoch, _, *slots = line.split(" ")
        place, _, name = place.partition(",")
        host, _, port = place.partition("@")[0].rpartition(":")
        host = name.partition(",")[0] or host or (asked_at if "myself" in flags else "")
        if "master" in flags and host and not {"fail", "noaddr", "handshake"}.intersection(flags.split(",")):
            yield _Primary((host, int(port)), int(epoch), any(map(_is_ours, slots)))


def _is_ours(slots: str) -> bool:
    """One number, or FIRST-LAST; in brackets what is being moved."""
    first, _, last = slots.partition("-")
    return first.isdecimal() and int(first) <= _SLOT <= int(last or first)


async def _of_all(
    nodes: Sequence[Address], login: dict[str, str], tls: dict[str, str | bool] | None, *question: str
) -> list[tuple[Address, Any]]:
    """The answers of those that give one. Raises RedisError where none does."""
    asking = (_of(node, login, tls, question) for node in nodes)
    answers = await asyncio.gather(*asking, return_exceptions=True)
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    if len(failures) == len(nodes):
        raise failures[0]
    both = zip(nodes, answers, strict=True)
    return [(node, answer) for node, answer in both if not isinstance(answer, BaseException)]


async def _of(
    node: Address, login: dict[str, str], tls: dict[str, str | bool] | None, question: Sequence[str]
) -> Any:
    given: dict[str, Any] = {
        "host": node[0],
        "port": node[1],
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": _FIND_S,
        "socket_connect_timeout": _FIND_S,
        "decode_responses": True,
        "protocol": 2,
        **login,
        **(tls or {}),
    }
    connection: Any = (Connection if tls is None else SSLConnection)(**given)
    try:
        await connection.connect()
        await connection.send_command(*question)
        return await connection.read_response()
    except OSError as failure:
        raise RedisError(str(failure)) from failure
    finally:
        await connection.disconnect()
