"""What is in force: GET /admin/config, the configuration as loaded with its secrets masked, and GET /admin/left, what is
left of the limits that bound a tenant or one of its keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from gateway.own_limits import OwnLimits  # noqa: TC001 - FastAPI reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.auth import Keyring
    from gateway.own_limits import OwnLimiter


class ConfigShown(BaseModel):
    file: str | None = Field(description="Where it was read from.")
    valid: bool = Field(description="False: the file has changed to something that is not valid.")
    waiting: list[str] = Field(description="Keys that have changed in the file and take a restart.")
    config: dict[str, Any] = Field(description="As loaded, defaults included; secrets are masked.")


def config_routes(
    in_force: Callable[[], ConfigShown], limiter: OwnLimiter, keyring: Callable[[], Keyring]
) -> APIRouter:
    """To be mounted where only administrators are let in."""
    routes = APIRouter()

    @routes.get("/config")
    async def config() -> ConfigShown:
        """The configuration as loaded."""
        return in_force()

    @routes.get("/left")
    async def left(
        tenant: Annotated[str, Query(description="Whose.")] = "",
        key: Annotated[str | None, Query(description="In place of `tenant`: the id of a key.")] = None,
    ) -> OwnLimits:
        """What is left of the limits that bound a tenant's calls, or those with one key."""
        keys = keyring()
        return await limiter.of(keys.of_tenant(tenant) if key is None else keys.identified(key))

    return routes
