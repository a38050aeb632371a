"""What receivers of usage events are sent, in the words of each kind, and what their replies mean. Pure.

    cloudevents   CloudEvents 1.0 as JSON, one by one or as a batch; OpenMeter takes them as they are
    lago          Lago's batch of events: for each meter one
    stripe        a Stripe meter event, as a form: for each meter one, in a request each

Each event has an id that is the same whenever it is sent: a receiver that has one already counts it once.
"""

from __future__ import annotations

import base64
import hmac
import re
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from gateway.output import usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.config_events import WebhookSection

_LONGEST_ID = 100
"""Of Stripe's identifiers."""
_ALREADY = "already exists with identifier"
"""What Stripe says of an event that it has."""
_LONGEST_REASON = 300


class Fact(Struct, frozen=True):
    """What a receiver is to be told of: a call that used something, or money that moved beside calls."""

    id: str
    kind: str
    """call, credit, refund, correction or payment."""
    tenant: str
    time_ms: int
    about: dict[str, Any]
    """What there is to say of it. What serving a call has cost, and where, is not among it."""
    quantities: dict[str, int]
    """What meters count."""


class Event(Struct, frozen=True):
    """As it is sent."""

    id: str
    tenant: str
    part: str
    """Which of a fact's events it is: the meter; "" where a fact makes only one."""
    body: dict[str, Any]


class Request(Struct, frozen=True):
    id: str
    """The same whenever the same events are sent."""
    content_type: str
    body: bytes


class Shape(Protocol):
    """The words of a kind of receiver."""

    batch: int
    """Most events in a request."""
    replies_in_json: bool
    """A 2xx without any is of somebody else, such as a proxy's page."""

    def events(self, fact: Fact, customer: str) -> list[Event]:
        """What is sent of it, about that tenant as the receiver calls it."""
        ...

    def request(self, events: Sequence[Event]) -> Request: ...

    def settled(self, status: int, reply: bytes, count: int) -> dict[int, str]:
        """What a reply which refuses a request of so many events says of them, by their places: "" where the receiver has
        it, else why it does not take it. Those left out may be taken without the others.
        """
        ...


class CloudEvents:
    """https://github.com/cloudevents/spec, JSON format, structured or batched mode."""

    replies_in_json = False

    def __init__(self, source: str, batch: int) -> None:
        self.batch = batch
        self._source = source

    def events(self, fact: Fact, customer: str) -> list[Event]:
        body = {
            "specversion": "1.0",
            "id": fact.id,
            "source": self._source,
            "type": f"tidegate.{fact.kind}",
            "subject": customer,
            "time": _rfc3339(fact.time_ms),
            "datacontenttype": "application/json",
            "data": {"tenant": fact.tenant, **fact.about},
        }
        return [Event(fact.id, fact.tenant, "", body)]

    def request(self, events: Sequence[Event]) -> Request:
        bodies = [event.body for event in events]
        if self.batch == 1:
            return Request(
                _request_id(events), "application/cloudevents+json", msgspec.json.encode(bodies[0])
            )
        return Request(_request_id(events), "application/cloudevents-batch+json", msgspec.json.encode(bodies))

    def settled(self, status: int, reply: bytes, count: int) -> dict[int, str]:
        return _of_one(status, reply, count)


class Lago:
    """https://getlago.com/docs/api-reference/events/batch. All of a request is refused where one event of it is."""

    replies_in_json = True

    def __init__(self, meters: Mapping[str, str], batch: int) -> None:
        self.batch = batch
        self._meters = meters

    def events(self, fact: Fact, customer: str) -> list[Event]:
        found = []
        for code, quantity in self._meters.items():
            value = fact.quantities.get(quantity, 0)
            if value == 0:
                continue
            body: dict[str, Any] = {
                "transaction_id": _part_id(fact, code),
                "external_subscription_id": customer,
                "code": code,
                # It tells duplicates by this as well: it has to be the same each time.
                "timestamp": fact.time_ms // 1000,
                "properties": {**fact.about, quantity: value},
            }
            if quantity == "charge_nano_usd":
                body["precise_total_amount_cents"] = f"{Decimal(value).scaleb(-7):f}"
            found.append(Event(body["transaction_id"], fact.tenant, code, body))
        return found

    def request(self, events: Sequence[Event]) -> Request:
        body = msgspec.json.encode({"events": [event.body for event in events]})
        return Request(_request_id(events), "application/json", body)

    def settled(self, status: int, reply: bytes, count: int) -> dict[int, str]:
        try:
            details = msgspec.json.decode(reply)["error_details"] if status == 422 else {}
            found = {int(place): details[place] for place in details}
        except (msgspec.DecodeError, LookupError, TypeError, ValueError):
            found = {}
        there = {"transaction_id": ["value_already_exist"]}
        said = {
            place: "" if what == there else _shown(status, msgspec.json.encode(what))
            for place, what in found.items()
            if 0 <= place < count
        }
        return said or _of_one(status, reply, count)


class Stripe:
    """https://docs.stripe.com/api/billing/meter-event/create. Values are whole numbers, one event a request."""

    batch = 1
    replies_in_json = True

    def __init__(self, meters: Mapping[str, str]) -> None:
        self._meters = meters

    def events(self, fact: Fact, customer: str) -> list[Event]:
        found = []
        for meter, quantity in self._meters.items():
            value = fact.quantities.get(quantity, 0)
            if value == 0:
                continue
            body = {
                "event_name": meter,
                "identifier": _part_id(fact, meter),
                "timestamp": str(fact.time_ms // 1000),
                "payload[stripe_customer_id]": customer,
                "payload[value]": str(value),
            }
            found.append(Event(body["identifier"], fact.tenant, meter, body))
        return found

    def request(self, events: Sequence[Event]) -> Request:
        (event,) = events
        return Request(
            _request_id(events), "application/x-www-form-urlencoded", urlencode(event.body).encode()
        )

    def settled(self, status: int, reply: bytes, count: int) -> dict[int, str]:
        try:
            message = str(msgspec.json.decode(reply)["error"]["message"])
        except (msgspec.DecodeError, LookupError, TypeError):
            message = ""
        if status == 400 and _ALREADY in message:
            return {0: ""}
        return _of_one(status, message.encode() or reply, count)


def shape_of(section: WebhookSection) -> Shape:
    if section.shape == "lago":
        return Lago(section.meters, min(section.batch, 100))
    if section.shape == "stripe":
        return Stripe(section.meters)
    return CloudEvents(section.source, section.batch)


def seems_json(reply: bytes) -> bool:
    """As far as its beginning tells: Lago's is long."""
    return reply.lstrip()[:1] in (b"{", b"[")


def signature(secrets: Sequence[str], request: Request, now_s: int) -> dict[str, str]:
    """The headers of https://www.standardwebhooks.com, with a signature by each of the secrets."""
    signed = f"{request.id}.{now_s}.".encode() + request.body
    signatures = []
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signatures.append(f"v1,{base64.b64encode(hmac.digest(key, signed, sha256)).decode()}")
    return {
        "webhook-id": request.id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": " ".join(signatures),
    }


def call_about(row: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
    """What there is to say of a call."""
    return {
        "project": row["project"],
        "key_id": row["key_id"],
        "customer": row["customer"],
        "model": row["model"],
        "tier": row["tier"],
        "api": row["api"],
        "outcome": row["outcome"],
        "request_id": row["request_id"],
        **tokens,
        "estimated": bool(row["estimated"]),
        "charge_nano_usd": row["charge_nano_usd"],
        "charge_usd": usd(row["charge_nano_usd"]),
    }


def _of_one(status: int, reply: bytes, count: int) -> dict[int, str]:
    """A single event is refused. Of several nobody knows which is to blame."""
    return {0: _shown(status, reply)} if count == 1 else {}


def _shown(status: int, reply: bytes) -> str:
    text = re.sub(r"[^ -~]+", " ", reply[: 4 * _LONGEST_REASON].decode("utf-8", "replace"))
    return f"{status}: {text.strip()}".removesuffix(": ")[:_LONGEST_REASON]


def _part_id(fact: Fact, meter: str) -> str:
    text = f"{fact.id}:{meter}"
    return text if len(text) <= _LONGEST_ID else sha256(text.encode()).hexdigest()


def _request_id(events: Sequence[Event]) -> str:
    """Without a dot, which separates it from what else is signed."""
    ids = "\n".join(event.id for event in events)
    return f"evt_{sha256(ids.encode()).hexdigest()[:32]}"


def _rfc3339(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"
