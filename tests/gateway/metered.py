"""A meter of a call, and what it is metered by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.arrival import Arrival
from gateway.auth import Key
from gateway.catalog import Model
from gateway.meter import Meter
from gateway.openai import Request
from routing.types import Endpoint, Price

if TYPE_CHECKING:
    from gateway.ledger import UsageRow

PRICE = Price(input_pico_usd=50_000, output_pico_usd=100_000, cached_input_pico_usd=25_000)
COST = Price(input_pico_usd=20_000, output_pico_usd=40_000)
WORKER = Endpoint(
    name="w1", model="llama", served_model="llama", kind="worker", url="http://127.0.0.1:1", cost=COST
)
CHUNK = (
    b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
)


def meter_for(rows: list[UsageRow], *, prompt_tokens: int = 10) -> Meter:
    request = Request(api="chat", model="llama", fields={}, prompt_tokens=prompt_tokens, stream=True)
    arrival = Arrival("call", "req_call", Key(id="key_1", tenant="acme"), time.monotonic())
    return Meter(arrival, request, Model("llama", PRICE), rows.append)
