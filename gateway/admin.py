"""Administration over HTTP: who may, and the routes below /admin, described at /admin/docs."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, get_args

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer

from gateway.admin_nodes import node_routes
from gateway.auth import Key, Keyring
from gateway.errors import ApiError
from gateway.explain import Explanation, Question
from gateway.openai import Api
from gateway.store import MASTER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.catalog import Catalog
    from gateway.config import Config
    from gateway.nodes import Nodes
    from gateway.planning import Planner
    from gateway.policy import Policies

_QUESTION: dict[str, Any] = {
    "type": "object",
    "description": "A call as a client would send it; its plain body by itself will do as well.",
    "properties": {
        "api": {"enum": list(get_args(Api)), "description": "Without it, told by the fields of `request`."},
        "request": {"type": "object", "description": "The body of the call."},
        "headers": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "`x-tidegate-*` headers of the call.",
        },
        "tenant": {"type": "string", "description": "Whose call it is; the tenant's policy then bounds it."},
        "key": {
            "type": "string",
            "description": "The id of the key it is made with, or enough of its start; its policy bounds it as well.",
        },
    },
    "required": ["request"],
    "example": {
        "request": {"model": "MODEL", "messages": [{"role": "user", "content": "Why are there tides?"}]}
    },
}


class Administrators:
    """Whoever has `auth.master_key`; anyone, where no keys are asked for and only this machine can call."""

    def __init__(self, config: Config, keys: Keyring | Key) -> None:
        """`keys` are those of calls."""
        master_key = config.auth.master_key
        if isinstance(keys, Key):
            secret = None if master_key is None else master_key.get_secret_value()
            keys = Keyring(secrets.token_bytes(32), secret)
        self.keyring = keys
        self._anyone = config.auth.mode == "none" and config.listen.is_loopback
        self._explain_to = config.auth.explain_to

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises ApiError where these headers bring no administrator."""
        if not self._anyone and self.keyring.admit(headers).id != MASTER:
            raise ApiError("admin_key_required", "This takes the master key, `auth.master_key`.")

    def admit_to_plans(self, caller: Key) -> None:
        """Raises ApiError where the calls of `caller` may not ask for their plan."""
        told = self._explain_to
        if not (self._anyone or caller.id == MASTER or caller.tenant in told or "*" in told):
            raise ApiError("explain_not_allowed", "This key may not ask for the plan of a call.")


def admin_routes(
    administrators: Administrators, catalog: Catalog, policies: Policies, planner: Planner, nodes: Nodes
) -> APIRouter:
    def administrator(request: Request) -> None:
        administrators.admit(dict(request.scope["headers"]))

    # The former only describes how the key is sent.
    admitted = [Depends(HTTPBearer(auto_error=False)), Depends(administrator)]
    routes = APIRouter(prefix="/admin", dependencies=admitted)
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": _QUESTION}}}}

    @routes.post("/explain", openapi_extra=body)
    async def explain(request: Request) -> Explanation:
        """The plan for a call as it would be made now. Nothing is sent to an endpoint, and nothing is metered."""
        question = Question.read(await request.body())
        caller = question.caller(administrators.keyring, policies)
        return Explanation.of(caller, *question.decisions(catalog, caller, planner))

    routes.include_router(node_routes(nodes))
    return routes
