"""What litellm's own table says of a model: its price, its context and what it can do.

The table is a file of the package. It is read here without importing the package, which takes seconds, so that
`tidegate check` is quick; and from the file only, so that what a call costs does not depend on what a server somewhere
said this morning.
"""

from __future__ import annotations

import functools
import importlib.util
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from msgspec import Raw, Struct

from routing.types import Capability, Price

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FILE = "model_prices_and_context_window_backup.json"
_PICO_USD = 10**12
_EMBEDS: frozenset[Capability] = frozenset({"embeddings"})


class Known(Struct, frozen=True):
    """What the table says of one model."""

    price: Price
    context_tokens: int | None
    capabilities: frozenset[Capability]


class _Entry(Struct):
    litellm_provider: str = ""
    mode: str | None = None
    input_cost_per_token: Decimal | None = None
    output_cost_per_token: Decimal | None = None
    cache_read_input_token_cost: Decimal | None = None
    output_cost_per_reasoning_token: Decimal | None = None
    max_input_tokens: int | None = None
    supports_function_calling: bool | None = None
    supports_vision: bool | None = None
    supports_response_schema: bool | None = None

    def known(self) -> Known | None:
        """None where it has no price per token."""
        if self.input_cost_per_token is None:
            return None
        cached, reasoning = self.cache_read_input_token_cost, self.output_cost_per_reasoning_token
        price = Price(
            _pico_usd(self.input_cost_per_token),
            _pico_usd(self.output_cost_per_token or Decimal()),
            None if cached is None else _pico_usd(cached),
            None if reasoning is None else _pico_usd(reasoning),
        )
        return Known(price, self.max_input_tokens, self._capabilities())

    def _capabilities(self) -> frozenset[Capability]:
        if self.mode == "embedding":
            return _EMBEDS
        found = {
            "tools": self.supports_function_calling,
            "vision": self.supports_vision,
            "json_schema": self.supports_response_schema,
            # The table does not say; these are known to have none.
            "logprobs": not any(name in self.litellm_provider for name in ("anthropic", "bedrock")),
        }
        return frozenset(each for each in get_args(Capability) if found.get(each))


def known(model: str, params: Mapping[str, Any]) -> Known | None:
    """What the table says of "provider/model"; None where it does not know it, or no price per token."""
    table = _table()
    provider = model.partition("/")[0]
    for name, qualified in _names(model, params.get("aws_region_name")):
        raw = table.get(name)
        if raw is None:
            continue
        entry = msgspec.json.decode(raw, type=_Entry)
        if qualified or _is_of(entry.litellm_provider, provider):
            return entry.known()
    return None


def _names(model: str, region: object) -> Iterator[tuple[str, bool]]:
    """Under which a model may stand in the table, the most exact first, and whether the name says whose it is."""
    provider, _, name = model.partition("/")
    if provider == "bedrock":
        # bedrock/[converse/|invoke/][REGION/][us.|eu.|...]PUBLISHER.MODEL
        name = name.removeprefix("converse/").removeprefix("invoke/")
        if isinstance(region, str):
            yield f"bedrock/{region}/{name}", True
    yield model, True
    yield name, False
    if provider == "bedrock":
        name = name.rpartition("/")[2]
        yield name, False
        yield name.partition(".")[2], False


def _is_of(named: str, provider: str) -> bool:
    """Whether the table's provider is the one of a model's prefix: it has bedrock_converse, vertex_ai-language-models."""
    return named == provider or named.startswith(f"{provider}-") or named == f"{provider}_converse"


@functools.cache
def _table() -> dict[str, Raw]:
    """By name; empty where litellm is not installed."""
    package = importlib.util.find_spec("litellm")
    if package is None or package.origin is None:
        return {}
    entries = msgspec.json.decode(Path(package.origin).with_name(_FILE).read_bytes(), type=dict[str, Raw])
    for raw in list(entries.values()):
        if b'"aliases"' in bytes(raw):
            for alias in msgspec.json.decode(raw).get("aliases") or ():
                entries.setdefault(alias, raw)
    return entries


def _pico_usd(usd: Decimal) -> int:
    """Whole ones; what is left behind the point is rounded up, so that nothing is for free."""
    return int((usd * _PICO_USD).to_integral_value(ROUND_CEILING))
