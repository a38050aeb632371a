"""A node, and that one leaves, as a process knows it."""

from __future__ import annotations

from msgspec import Struct

from gateway.config_node import NodeSection  # noqa: TC001 - msgspec may read annotations


class Node(Struct):
    """One that has registered."""

    section: NodeSection
    text: str
    """The same, as it is written down."""
    lease_until_s: float
    """On the monotonic clock."""
    registered_ms: int
    heard_ms: int
    ending: str | None = None
    """What its stay will have ended by, where that is known already."""
    written: bool = False
    """Whether it is in the database, so that it has left where it is there no more."""


class Leaving(Struct, frozen=True):
    """That a node leaves, whether it has registered or not."""

    at_s: float
    """On the monotonic clock."""
    draining: bool
    """Whether it gets nothing new until then."""
    leaves_ms: int
    """The same time on the clock on the wall, by which one announcement is told from another."""
    own: bool
    """Whether it has said so itself: then it is over when it registers anew, or is gone. An operator's word holds until an
    operator takes it back, or removes the node."""
    written: bool = False
    """Whether it is in the database, so that it has been taken back where it is there no more."""

    @property
    def ending(self) -> str:
        return "drained" if self.draining else "preempted"
