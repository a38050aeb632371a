"""What administrators work at: what the routes below /admin that are about the database all need.

The command line works at such a desk as well, over a database that its configuration names: whoever may write to it needs no
gateway that runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

from gateway.config_policy import no_such_model
from gateway.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from fastapi import Request

    from gateway.audit import Actor
    from gateway.config_policy import PolicySection
    from gateway.drift import Drift
    from gateway.policy import Policy
    from gateway.store import Store

_Done = TypeVar("_Done")


class Desk(Struct, frozen=True):
    store: Store
    actor_of: Callable[[Request], Actor]
    """Who asks; it has been seen to that they may."""
    model_names: Callable[[], Collection[str]]
    """All that policies may name."""
    configured: Callable[[], Mapping[str, Policy]]
    """The tenants of the configuration, with their policies there."""
    changed: Callable[[], Awaitable[None]]
    """To be called after a change."""
    drift: Callable[[bool], Awaitable[list[Drift]]]
    """What the store of limits takes to be spent, beside the ledger; put right where that is asked for."""

    async def change(self, work: Callable[[], _Done]) -> _Done:
        done = await asyncio.to_thread(work)
        await self.changed()
        return done

    def policy(self, section: PolicySection | None) -> Policy | None:
        """Raises ApiError where it names a model that there is not."""
        names = self.model_names()
        for name in sorted(() if section is None else section.models or ()):
            if name not in names:
                raise ApiError("invalid_value", no_such_model(name, names), param="policy.models")
        return None if section is None else section.policy()
