"""What the other processes of a gateway have under way, told to the one that somebody looks at.

Whoever looks, at the console or by `tidegate top`, has reached one of them, and means the gateway. So each process has a socket
in the folder that they share: who connects there is told at once what this process has under way, and, for as long as it
stays, a few times a second what has changed. While nobody looks, nobody is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import msgspec
from msgspec import Struct

from gateway.watch import CallSeen  # noqa: TC001 - read where messages are decoded

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from backends.member import Member
    from gateway.supervisor import Seat
    from gateway.watch import Watch

TICK_S = 0.25
"""Between two looks at calls."""
ANSWER_S = 1.0
"""For another process to say how it stands. One that does not is left out."""
_LOOK_AGAIN_S = 1.0
"""Whether there are other processes than before."""
_SUFFIX = ".beside"
_FLEET, _CALLS = b"f", b"c"
_LENGTH = struct.Struct("<I")


class Load(Struct):
    """What a process has done at one endpoint since its start."""

    attempts: dict[str, int]
    """Ended, by outcome."""
    ejections: int


class Told(Struct):
    """How a process stands."""

    running: int
    unseen: int
    """Calls that were too many to be followed."""
    written: dict[str, int]
    """Tokens of the answers under way, by the call's id."""
    loads: dict[str, Load] = {}
    """By endpoint; see `place_of`."""
    calls: list[CallSeen] = []
    """Those that have changed."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Told).decode


def place_of(member: Member) -> str:
    return f"{member.endpoint.model}\n{member.endpoint.name}"


class Beside:
    """The other processes, where there are any."""

    def __init__(
        self,
        seat: Seat | None,
        watch: Watch,
        members: Callable[[], Iterable[Member]],
        running: Callable[[], int],
    ) -> None:
        """`running`: how many calls are under way in this process."""
        self.running_here = running
        self._seat = seat
        self._watch = watch
        self._members = members
        self._told: dict[str, Told] = {}
        """By the name of the process, while it is followed."""
        self._listening: dict[str, asyncio.Task[None]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._lookers = 0

    # What others are told

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[Self]:
        """Tell those who ask, as long as the block runs."""
        if self._seat is None:
            yield self
            return
        path = self._seat.folder / f"{self._seat.name}{_SUFFIX}"
        server = await asyncio.start_unix_server(self._tell, path)
        try:
            yield self
        finally:
            server.close()
            path.unlink(missing_ok=True)
            await _ended([*self._telling])

    async def _tell(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # it is gone
                asked = await reader.readexactly(1)
                if asked == _CALLS:
                    await self._tell_on(writer)
                else:
                    _send(writer, self._stands(whole=True))
                    await writer.drain()
        finally:
            writer.close()

    async def _tell_on(self, writer: StreamWriter) -> None:
        """Until the other goes away."""
        seq = tick = 0
        with self._watch.looking():
            while not writer.is_closing():
                told = self._stands(whole=not tick % 4)
                told.calls, seq = self._watch.own_since(seq), self._watch.seq
                _send(writer, told)
                await writer.drain()
                tick += 1
                await asyncio.sleep(TICK_S)

    def _stands(self, *, whole: bool) -> Told:
        told = Told(self.running_here(), self._watch.unseen, self._watch.written())
        if whole:
            told.loads = {
                place_of(each): Load(dict(each.attempts), each.ejection.ejections) for each in self._members()
            }
        return told

    # What others tell

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Somebody looks here, as long as the block runs, and sees what they have under way."""
        self._lookers += 1
        if self._following is None and self._seat is not None:
            self._following = asyncio.create_task(self._follow(self._seat), name="other processes")
        try:
            with self._watch.looking():
                yield
        finally:
            self._lookers -= 1
            if not self._lookers and self._following is not None:
                following, self._following = self._following, None
                await _ended([following, *self._listening.values()])
                self._watch.forget_others()

    async def _follow(self, seat: Seat) -> None:
        while True:
            for path in _others(seat):
                if path.stem not in self._listening:
                    task = asyncio.create_task(self._listen(path), name=f"process {path.stem}")
                    self._listening[path.stem] = task
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _listen(self, path: Path) -> None:
        name = path.stem
        try:
            async with _asking(path, _CALLS) as reader:
                while True:
                    told = await _heard(reader)
                    if not told.loads and name in self._told:
                        told.loads = self._told[name].loads
                    self._watch.take(name, told.calls)
                    self._told[name] = told
        except (OSError, asyncio.IncompleteReadError):
            self._watch.lost(name)
        finally:
            self._told.pop(name, None)
            self._listening.pop(name, None)

    async def stand(self) -> list[Told]:
        """How each of them stands."""
        if self._seat is None:
            return []
        if self._told:
            return [*self._told.values()]
        found = await asyncio.gather(*map(_asked, _others(self._seat)))
        return [each for each in found if each is not None]

    @property
    def processes(self) -> int:
        """Of the gateway, as far as they are followed."""
        return 1 + len(self._told)

    @property
    def running(self) -> int:
        """Calls under way, theirs as far as they are followed."""
        return self.running_here() + sum(each.running for each in self._told.values())

    @property
    def unseen(self) -> int:
        """Calls that were too many to be followed."""
        return self._watch.unseen + sum(each.unseen for each in self._told.values())

    def written(self) -> dict[str, int]:
        """Tokens so far of the answers under way, by the call's id."""
        return self._watch.written() | {
            call: tokens for each in self._told.values() for call, tokens in each.written.items()
        }


def _others(seat: Seat) -> list[Path]:
    return [path for path in seat.folder.glob(f"*{_SUFFIX}") if path.stem != seat.name]


async def _asked(path: Path) -> Told | None:
    try:
        async with asyncio.timeout(ANSWER_S), _asking(path, _FLEET) as reader:
            return await _heard(reader)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):  # it is gone, or too busy
        return None


@asynccontextmanager
async def _asking(path: Path, what: bytes) -> AsyncIterator[StreamReader]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(what)
        yield reader
    finally:
        writer.close()


def _send(writer: StreamWriter, told: Told) -> None:
    encoded = _encode(told)
    writer.write(_LENGTH.pack(len(encoded)) + encoded)


async def _heard(reader: StreamReader) -> Told:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return _decode(await reader.readexactly(length))


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
