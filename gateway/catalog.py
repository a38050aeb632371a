"""What is on offer: the models with their prices, by every name that clients may use, and the tiers."""

from __future__ import annotations

import difflib
from heapq import nlargest
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.errors import ApiError

if TYPE_CHECKING:
    from gateway.config import Config, Limits
    from routing.types import Price, Tier, TierName

TIERS: tuple[TierName, ...] = ("priority", "default", "flex")

_LOOKED_AT = 50
"""Names compared in full with one that is unknown: to compare thousands would hold up all other calls for half a second."""


class Model(Struct, frozen=True):
    name: str
    """Public."""
    price: Price
    """What tenants are charged."""


class Catalog:
    def __init__(self, config: Config, created_s: int) -> None:
        self.limits: Limits = config.limits
        self.total_s = float(config.timeouts.total_s)
        self.tiers: dict[TierName, Tier] = {name: config.tier(name) for name in TIERS}
        self.models = {name: Model(name, section.price.price()) for name, section in config.models.items()}
        self.created_s = created_s
        """When this catalog was put up, for lists of models: seconds since 1970."""
        self._by_name = dict(self.models)
        for name, section in config.models.items():
            self._by_name.update(dict.fromkeys(section.aliases, self.models[name]))
        self._pairs = {name: _pairs(name) for name in self._by_name}

    def model(self, name: str) -> Model:
        """The model of that name or alias. Raises ApiError, naming what is spelled alike."""
        model = self._by_name.get(name)
        if model is None:
            close = self._spelled_like(name[:200])
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ApiError(
                "model_not_found", f"The model {name[:200]!r} does not exist.{hint}", param="model"
            )
        return model

    def _spelled_like(self, name: str) -> list[str]:
        pairs = _pairs(name)

        def shared(known: str) -> float:
            theirs = self._pairs[known]
            return len(pairs & theirs) / (len(pairs) + len(theirs) + 1)

        return difflib.get_close_matches(name, nlargest(_LOOKED_AT, self._pairs, key=shared), n=3)


def _pairs(name: str) -> frozenset[str]:
    """Its pairs of neighbouring characters: names spelled alike share most of them."""
    return frozenset(map(str.__add__, name, name[1:]))
