"""What a command does while it takes long, said on the terminal of whoever waits; where stderr is none, nothing is said."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON_S = 0.5
"""What is done within that needs no words."""


@contextmanager
def waiting(what: str) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - takes time to import

    status = Console(stderr=True, markup=False, highlight=False).status(what)
    timer = threading.Timer(SOON_S, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()
