"""What is on offer: the models with their prices, by every name that clients may use, and the tiers."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.errors import ApiError

if TYPE_CHECKING:
    from gateway.config import Config, Limits
    from routing.types import Price, Tier, TierName

TIERS: tuple[TierName, ...] = ("priority", "default", "flex")


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

    def model(self, name: str) -> Model:
        """The model of that name or alias. Raises ApiError, naming what is spelled alike."""
        model = self._by_name.get(name)
        if model is None:
            close = difflib.get_close_matches(name[:200], self._by_name, n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ApiError(
                "model_not_found", f"The model {name[:200]!r} does not exist.{hint}", param="model"
            )
        return model
