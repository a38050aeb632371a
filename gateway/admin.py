"""Administration over HTTP: who may, and the routes below /admin, described at /admin/docs."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer

from gateway.admin_calls import call_routes
from gateway.admin_config import config_routes
from gateway.admin_desk import desk_routes
from gateway.admin_fleet import fleet_routes
from gateway.admin_keys import PREFIX, AdminKeyring
from gateway.admin_nodes import node_routes
from gateway.audit import Actor
from gateway.auth import ANYONE, Key, Keyring, bearer, unknown_key
from gateway.console.session import expect_same_origin
from gateway.errors import ApiError
from gateway.explain import Explanation, Question
from gateway.openai import Api
from gateway.store import MASTER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.admin_fleet import FleetBoard
    from gateway.admin_keys import AdminKey
    from gateway.catalog import Catalog
    from gateway.config import Config
    from gateway.console.session import Sessions
    from gateway.desk import Desk
    from gateway.nodes import Nodes
    from gateway.own_limits import OwnLimiter
    from gateway.planning import Planner
    from gateway.reload import Reload
    from gateway.source import Sources

_LOOKS = ("/admin/explain", "/admin/billing/reconcile/")
"""What is asked with a body, and changes nothing."""
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
    """Whoever has an admin key or `auth.master_key`; anyone, where no keys are asked for and only this machine can call."""

    def __init__(
        self,
        config: Config,
        keys: Keyring | Key,
        admin_keys: AdminKeyring,
        sources: Sources,
        sessions: Sessions,
    ) -> None:
        """`keys` are those of calls."""
        master_key = config.auth.master_key
        if isinstance(keys, Key):
            secret = None if master_key is None else master_key.get_secret_value()
            keys = Keyring(secrets.token_bytes(32), secret)
        self.keyring = keys
        self._admin_keys = admin_keys
        self._sources = sources
        self._sessions = sessions
        self.anyone = config.auth.mode == "none" and config.is_loopback
        self._explain_to = config.auth.explain_to

    def admit(self, request: Request, *, looks: bool) -> Actor:
        """Who asks. Raises ApiError where it is no administrator, or one who may only look and wants more."""
        headers = dict(request.scope["headers"])
        source = str(self._sources.of(request.client and request.client.host, headers) or "")
        if self.anyone:
            if not looks:
                expect_same_origin(headers)
            return Actor(ANYONE, source)
        session = self._sessions.admit(request.method, headers)
        key = self._key(headers) if session is None else self.of_digest(session.digest)
        if key is None:
            raise unknown_key()
        if isinstance(key, Key):
            if key.id != MASTER:
                raise ApiError("admin_key_required", "This takes an admin key, or `auth.master_key`.")
        elif key.role != "admin" and not looks:
            raise ApiError("admin_role_required", f"The role of this admin key is {key.role}: it may look.")
        return Actor(key.id, source)

    def _key(self, headers: Mapping[bytes, bytes]) -> AdminKey | Key | None:
        secret = bearer(headers)
        return self._admin_keys.find(secret) if secret.startswith(PREFIX) else self.keyring.admit(headers)

    def of_digest(self, digest: bytes) -> AdminKey | Key:
        """Whose secret has this digest, whether it is good for administration or for calls. Raises ApiError."""
        return self._admin_keys.of_digest(digest) or self.keyring.admit_digest(digest)

    def admit_to_plans(self, caller: Key) -> None:
        """Raises ApiError where the calls of `caller` may not ask for their plan."""
        told = self._explain_to
        if not (self.anyone or caller.id == MASTER or caller.tenant in told or "*" in told):
            raise ApiError("explain_not_allowed", "This key may not ask for the plan of a call.")


class Administration(NamedTuple):
    """What the routes are about."""

    administrators: Administrators
    catalog: Catalog
    planner: Planner
    nodes: Nodes
    desk: Desk
    limiter: OwnLimiter
    board: FleetBoard
    reload: Reload


def admin_routes(about: Administration) -> APIRouter:
    def administrator(request: Request) -> None:
        looks = request.method in ("GET", "HEAD") or request.url.path.startswith(_LOOKS)
        request.state.actor = about.administrators.admit(request, looks=looks)

    # The former only describes how the key is sent.
    admitted = [Depends(HTTPBearer(auto_error=False)), Depends(administrator)]
    routes = APIRouter(prefix="/admin", dependencies=admitted)
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": _QUESTION}}}}

    @routes.post("/explain", openapi_extra=body)
    async def explain(request: Request) -> Explanation:
        """The plan for a call as it would be made now. Nothing is sent to an endpoint, and nothing is metered."""
        question = Question.read(await request.body())
        caller = question.caller(about.administrators.keyring)
        return Explanation.of(caller, *question.decisions(about.catalog, caller, about.planner))

    routes.include_router(desk_routes(about.desk))
    routes.include_router(node_routes(about.nodes, about.desk))
    routes.include_router(fleet_routes(about.board))
    routes.include_router(call_routes(about.desk.store))
    routes.include_router(
        config_routes(about.reload.shown, about.limiter, lambda: about.administrators.keyring)
    )
    return routes
