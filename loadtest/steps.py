"""How far a long command has come, on the terminal of whoever waits for it; where stderr is none, nothing is said."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.progress import ProgressColumn

T = TypeVar("T")


@contextmanager
def steps() -> Iterator[Callable[[Sequence[T], str], Iterable[T]]]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with on_terminal(*columns) as progress:
        yield lambda sequence, name: progress.track(sequence, description=name)


@contextmanager
def doing() -> Iterator[Callable[[str], None]]:
    """To say what is being done now."""
    with on_terminal(SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")) as progress:
        task = progress.add_task("begins", total=None)
        yield lambda text: progress.update(task, description=text)


def on_terminal(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
