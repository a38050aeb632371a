"""What a worker has worked for each request, in a file that outlives it: to be held against what others say of the same.

A line is written before the last byte of the reply goes out, so that of a reply that somebody has seen all of, there is one,
though the worker be killed in the next moment. What was under way then has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from loadtest.simworker.connection import Request


class Worked(Struct, frozen=True):
    """For one request."""

    request_id: str
    """As it came with it; "" where it did not, as probes do not."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ended: Literal["finished", "aborted"]
    """Aborted: its client left, having been told of no usage."""


class Account:
    """One worker's; nothing is written where it is given no folder."""

    def __init__(self, folder: str, port: Callable[[], int]) -> None:
        self._folder = folder
        self._port = port
        self._file: BinaryIO | None = None

    def note(
        self,
        request: Request,
        prompt: int,
        cached: int,
        completion: int,
        ended: Literal["finished", "aborted"] = "finished",
    ) -> None:
        if not self._folder:
            return
        if self._file is None:
            self._file = (Path(self._folder) / f"{self._port()}.jsonl").open("ab", buffering=0)
        worked = Worked(request.header(b"x-request-id") or "", prompt, cached, completion, ended)
        self._file.write(msgspec.json.encode(worked) + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def accounts_in(folder: Path) -> Iterator[tuple[int, Worked]]:
    """All that workers have noted there, with their ports."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            yield int(path.stem), msgspec.json.decode(line, type=Worked)
