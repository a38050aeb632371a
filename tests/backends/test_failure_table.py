"""The table of failures has a row for each class, and none for anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends import base
from backends.base import AttemptFailed, CallRejected
from routing.failure import FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterator


def below(kind: type[AttemptFailed]) -> Iterator[type[AttemptFailed]]:
    yield kind
    for each in kind.__subclasses__():
        yield from below(each)


def test_every_failure_has_its_own_row_and_every_row_its_failure():
    kinds = {kind.__name__: kind for kind in below(AttemptFailed) if kind.__module__.startswith("backends")}
    assert kinds.keys() | {"CallRejected"} == FAILURES.keys()
    for name, kind in {**kinds, "CallRejected": CallRejected}.items():
        assert kind.sort is FAILURES[name]
        assert name in (base.__doc__ or "")


def test_a_failure_without_a_row_cannot_be_defined():
    with pytest.raises(KeyError, match="Unheard"):
        type("Unheard", (AttemptFailed,), {})


@pytest.mark.parametrize("name", FAILURES)
def test_a_row_does_not_contradict_itself(name: str):
    row = FAILURES[name]
    if row.whose == "call":
        assert row.leaves is None  # it says nothing of the endpoint
    if row.crash:
        assert row.wastes  # only one that was at work can crash
    if row.then == "room":
        assert row.leaves == "pause"
        assert row.wastes is None
