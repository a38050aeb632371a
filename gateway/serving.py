"""One call under way, as all who have a hand in serving it know it."""

from __future__ import annotations

from msgspec import Struct

from gateway.arrival import Arrival  # noqa: TC001
from gateway.catalog import Offer  # noqa: TC001 - fields of a Struct
from gateway.client import Client  # noqa: TC001
from gateway.meter import Meter  # noqa: TC001
from gateway.openai import Request  # noqa: TC001


class Serving(Struct, frozen=True, eq=False):
    request: Request
    """As its client sent it."""
    offer: Offer
    """The models that may answer it."""
    arrival: Arrival
    client: Client
    """Where the answer goes."""
    meter: Meter
