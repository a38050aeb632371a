"""`tidegate top`: fleet and calls of a running gateway, live in a terminal; one picture where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import termios
import time
import tty
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli_options import KeyOption, ReportFormatOption, UrlOption, administration_at, fail, unfolded
from gateway.output import Format, ReportFormat, show

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import httpx2

    from gateway.top import Picture, Top

AGAIN_S = 1.0
"""Between two tries at a gateway that is away."""
QUIET_S = 10.0
"""It tells something once a second. One that does not is away."""
_ANSWER_S = 30.0
_IN_LEDGER_TICKS = 3
"""A call that ended after the first look and before there were events is in neither. After so many seconds it is in the ledger."""
_LATEST_CALLS = 200
_NODES = (
    *("name", "model", "state", "inflight", "waiting", "busy", "kv_usage", "cache_hits"),
    *("prefill_tokens_per_s", "decode_tokens_per_s", "tokens_per_s", "answered", "errors", "reason"),
)
_CALLS = (
    *("id", "state", "tenant", "model", "endpoint", "tier", "prompt_tokens", "completion_tokens"),
    *("ttft_ms", "duration_ms", "cost_nano_usd", "charge_nano_usd", "steps"),
)


class AwayError(Exception):
    """The gateway cannot be asked now."""


class RefusedError(Exception):
    """It will not tell us, however often it is asked."""


@unfolded
def top(
    *,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600.0, help="Seconds from one picture to the next.")
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="One picture; so it is where there is no terminal.")
    ] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    output: ReportFormatOption = ReportFormat.TABLE,
) -> None:
    """Fleet and calls of a running gateway, live. As JSON: a line for each picture. q or Ctrl-C ends it, with exit code 0.

    Exit code 1: the gateway cannot be asked, or will not answer with this key. One that goes away later is tried again
    and again.
    """
    from gateway.top import Top  # noqa: PLC0415 - takes time to import, for commands that do not need it

    told = _Gateway(administration_at(url), key)
    known = Top(told.url)
    as_json = output is ReportFormat.JSON
    live = not once and (as_json or sys.stdout.isatty())
    try:
        if live:
            with _lines() if as_json else _screens() as draw:
                asyncio.run(_follow(told, known, interval, draw))
            return
        asyncio.run(told.begin(known))
    except (AwayError, RefusedError) as error:
        fail(str(error))
    picture = known.picture(_now_ms())
    _print_line(picture) if as_json else _print_tables(picture)


class _Gateway:
    """What it tells."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}

    async def begin(self, top: Top) -> None:
        """As it is now. Raises AwayError or RefusedError."""
        async with self._client() as client:
            fleet = await self._asked(client, "/admin/fleet")
            calls = await self._asked(client, "/admin/calls?most=1000")
        # It is told to the second, and calls may have ended within that.
        at_ms = round(datetime.fromisoformat(fleet["at"]).timestamp() * 1000) + 999
        top.begin(fleet, calls, at_ms)

    async def follow(self, top: Top) -> None:
        """Tell `top` what happens. Raises RefusedError."""
        while True:
            try:
                async with self._client() as client:
                    await self._listen(client, top)
                    top.away = "it has ended the connection"
            except AwayError as away:
                top.away = str(away)
            top.lost()
            await asyncio.sleep(AGAIN_S)
            with contextlib.suppress(AwayError):
                await self.begin(top)

    async def _listen(self, client: httpx2.AsyncClient, top: Top) -> None:
        ticks = 0
        async for name, told in self._events(client, "/console/events?fleet=true&calls=true"):
            if name == "fleet":
                top.take_fleet(told)
            elif name == "calls":
                top.take_calls(told)
            elif name == "tick":
                top.take_tick(told)
                ticks += 1
                if ticks == _IN_LEDGER_TICKS:
                    page = await self._asked(client, f"/admin/calls?most={_LATEST_CALLS}")
                    top.take_calls(page["data"])
            elif name == "over":
                raise RefusedError(f"{self.url} tells nothing more: {told['error']['message']}")

    async def _events(self, client: httpx2.AsyncClient, path: str) -> AsyncIterator[tuple[str, Any]]:
        with self._failing():
            async with client.stream("GET", self.url + path) as reply:
                if reply.status_code != 200:
                    self._refuse(path, reply.status_code, await reply.aread())
                rest = b""
                async for block in reply.aiter_bytes():
                    *events, rest = (rest + block).split(b"\n\n")
                    for event in events:
                        name, _, told = event.removeprefix(b"event: ").partition(b"\ndata: ")
                        if told:
                            yield name.decode(), json.loads(told)

    async def _asked(self, client: httpx2.AsyncClient, path: str) -> Any:
        with self._failing():
            reply = await client.get(self.url + path, timeout=_ANSWER_S)
        if reply.status_code != 200:
            self._refuse(path, reply.status_code, reply.content)
        try:
            return json.loads(reply.content)
        except ValueError:
            raise RefusedError(f"{self.url}{path} is no answer of Tidegate's administration") from None

    def _client(self) -> httpx2.AsyncClient:
        import httpx2  # noqa: PLC0415 - takes time to import

        return httpx2.AsyncClient(headers=self._headers, timeout=QUIET_S)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        import httpx2  # noqa: PLC0415 - as above

        try:
            yield
        except httpx2.HTTPError as error:
            raise AwayError(f"cannot ask {self.url}: {str(error) or type(error).__name__}") from None
        except (httpx2.InvalidURL, ValueError) as error:
            raise RefusedError(f"cannot ask {self.url}: {error}") from None

    def _refuse(self, path: str, status: int, body: bytes) -> None:
        try:
            said = json.loads(body)["error"]["message"]
        except (ValueError, LookupError, TypeError):
            said = body[:200].decode("utf-8", "replace") or "nothing"
        kind = AwayError if status >= 500 or status == 429 else RefusedError
        raise kind(f"{self.url}{path.partition('?')[0]} answered {status}: {said}")


async def _follow(told: _Gateway, top: Top, interval_s: float, draw: Callable[[Picture], None]) -> None:
    """Until somebody ends it. Raises AwayError where the gateway is away from the start, and RefusedError."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await told.begin(top)
    loop.add_signal_handler(signal.SIGWINCH, lambda: draw(top.picture(_now_ms())))
    following = asyncio.create_task(told.follow(top), name="the gateway's events")
    stopping = asyncio.create_task(stop.wait(), name="the end")
    try:
        with _keys(stop):
            while not stopping.done() and not following.done():
                draw(top.picture(_now_ms()))
                ended = asyncio.FIRST_COMPLETED
                await asyncio.wait([following, stopping], timeout=interval_s, return_when=ended)
        if following.done():
            following.result()
    finally:
        for task in (following, stopping):
            task.cancel()
        await asyncio.gather(following, stopping, return_exceptions=True)


@contextmanager
def _keys(stop: asyncio.Event) -> Iterator[None]:
    """`q` on the terminal ends it."""
    if not sys.stdin.isatty():
        yield
        return
    loop, terminal = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed() -> None:
        if b"q" in os.read(terminal, 64).lower():
            stop.set()

    tty.setcbreak(terminal, termios.TCSANOW)  # what has been typed already counts
    loop.add_reader(terminal, pressed)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextmanager
def _screens() -> Iterator[Callable[[Picture], None]]:
    from rich.console import Console  # noqa: PLC0415 - takes time to import
    from rich.live import Live  # noqa: PLC0415 - as above

    from gateway.top_screen import screen  # noqa: PLC0415 - as above

    console = Console(markup=False, highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda picture: live.update(screen(picture, console.width, console.height), refresh=True)


@contextmanager
def _lines() -> Iterator[Callable[[Picture], None]]:
    yield _print_line


def _print_line(picture: Picture) -> None:
    import msgspec  # noqa: PLC0415 - takes time to import

    sys.stdout.write(msgspec.json.encode(picture).decode() + "\n")
    sys.stdout.flush()


def _print_tables(picture: Picture) -> None:
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - takes time to import

        from gateway.top_screen import screen  # noqa: PLC0415 - as above

        console = Console(markup=False, highlight=False)
        console.print(screen(picture, console.width))
        return
    from msgspec import structs  # noqa: PLC0415 - takes time to import

    show([structs.asdict(picture.totals)], picture.totals.__struct_fields__, Format.TABLE)
    sys.stdout.write("\n")
    show([structs.asdict(each) for each in picture.endpoints], _NODES, Format.TABLE)
    sys.stdout.write("\n")
    calls = [structs.asdict(each) | {"steps": ", ".join(each.steps)} for each in picture.calls]
    show(calls, _CALLS, Format.TABLE)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
