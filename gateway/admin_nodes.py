"""The routes below /admin/nodes: nodes register, renew their leases and say that they leave; operators look and drain."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from gateway.config_node import DrainSection, NodeSection, NoticeSection, read_section
from gateway.node_audit import NodeAudit
from gateway.node_history import LOOK_BACK_MS, History, history

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from backends.member import Member
    from gateway.desk import Desk
    from gateway.nodes import Nodes

    _By = Callable[[Request, str, str], AbstractAsyncContextManager[None]]

State = Literal["serving", "ramping", "leaving", "draining", "probing", "out"]


class WorkerShown(BaseModel):
    """One worker of the fleet, for one model."""

    name: str
    model: str
    served_model: str
    url: str
    source: str = Field(description="`config`, `registered`, or the discovery that has found it.")
    state: State
    reason: str | None = Field(description="Why it gets no calls now.")
    inflight: int
    gpu: str | None
    region: str | None
    trust: str
    context_tokens: int | None
    leaves_in_s: float | None
    lease_left_s: float | None

    @classmethod
    def of(cls, member: Member, nodes: Nodes, now_s: float) -> Self:
        endpoint, node = member.endpoint, nodes.find(member.endpoint.name)
        departs_s = member.departs_s
        leased = node is not None and member.source == "registered"
        return cls(
            name=endpoint.name,
            model=endpoint.model,
            served_model=endpoint.served_model,
            url=endpoint.url,
            source=member.source,
            state=state_of(member, now_s),
            reason=member.unavailable(now_s)[0],
            inflight=member.inflight + member.inflight_elsewhere,
            gpu=endpoint.gpu,
            region=endpoint.region,
            trust=endpoint.trust.name.lower(),
            context_tokens=endpoint.context_tokens,
            leaves_in_s=None if departs_s is None else round(departs_s - now_s, 1),
            lease_left_s=round(node.lease_until_s - now_s, 1) if leased and node else None,
        )


class WorkersShown(BaseModel):
    nodes: list[WorkerShown]
    histories: dict[str, History] = Field(description="Of nodes that have registered, by name.")


class NodeShown(BaseModel):
    name: str
    workers: list[WorkerShown]
    history: History | None = Field(description="Where it has ever registered.")


class Lease(BaseModel):
    name: str
    lease_s: float | None = Field(description="None where it is not one that has registered.")
    heartbeat_s: float | None = Field(description="Send a heartbeat as often as this.")
    leaves_in_s: float | None = Field(description="Where it drains or has given notice.")
    drained: bool = Field(description="It drains, and nothing runs there any more: it can be stopped.")


def state_of(member: Member, now_s: float) -> State:
    if member.draining:
        return "draining"
    if member.ejection.on_probation:
        return "probing"
    if member.ejection.state(now_s)[0] is not None:
        return "out"
    if member.departs_s is not None:
        return "leaving"
    return "ramping" if member.ramping else "serving"


def _body_of(section: type[BaseModel], *, required: bool) -> dict[str, Any]:
    fields = {name: {"description": field.description or ""} for name, field in section.model_fields.items()}
    needed = [name for name, field in section.model_fields.items() if field.is_required()]
    schema = {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def node_routes(nodes: Nodes, desk: Desk) -> APIRouter:
    """To be mounted where only administrators are let in."""
    routes = APIRouter(prefix="/nodes")
    audit = NodeAudit(desk.store, nodes)

    def by(request: Request, action: str, name: str) -> AbstractAsyncContextManager[None]:
        return audit.noted(desk.actor_of(request), action, name)

    _add_membership(routes, nodes, by)
    _add_departures(routes, nodes, by)
    _add_looks(routes, nodes, by)  # last: these paths take any name, even one that ends like the others
    return routes


def _lease(nodes: Nodes, name: str) -> Lease:
    node = nodes.find(name)
    lease_s = None if node is None else nodes.lease_s(node.section)
    members = nodes.members(name)
    departures = [member.departs_s for member in members if member.departs_s is not None]
    return Lease(
        name=name,
        lease_s=lease_s,
        heartbeat_s=None if lease_s is None else round(lease_s / 3, 3),
        leaves_in_s=round(min(departures) - time.monotonic(), 1) if departures else None,
        drained=bool(members)
        and all(member.draining and not member.inflight + member.inflight_elsewhere for member in members),
    )


def _add_membership(routes: APIRouter, nodes: Nodes, by: _By) -> None:
    @routes.post("", openapi_extra=_body_of(NodeSection, required=True), status_code=201)
    async def register(request: Request, response: Response) -> Lease:
        """A node registers, or says what has changed. Its lease begins; it gets calls once it has been probed."""
        section = read_section(NodeSection, await request.body())
        async with by(request, "node.register", section.name):
            if not await nodes.register(section):
                response.status_code = 200
        return _lease(nodes, section.name)

    @routes.put("/{name:path}/heartbeat")
    @routes.post("/{name:path}/heartbeat")
    async def heartbeat(name: str) -> Lease:
        """Renews the lease. A 404 says that the node has to register again."""
        await nodes.heartbeat(name)
        return _lease(nodes, name)


def _add_departures(routes: APIRouter, nodes: Nodes, by: _By) -> None:
    @routes.post("/{name:path}/drain", openapi_extra=_body_of(DrainSection, required=False))
    async def drain(name: str, request: Request) -> Lease:
        """Nothing new from now on; what still runs shortly before the deadline is finished elsewhere."""
        section = read_section(DrainSection, await request.body())
        async with by(request, "node.drain", name):
            await nodes.leave_in(name, section.within_s, draining=True, own=section.own)
        return _lease(nodes, name)

    @routes.delete("/{name:path}/drain")
    async def cancel_drain(name: str, request: Request) -> Lease:
        """It does not leave after all: drain and notice are taken back, also of one that is not there now."""
        lease = _lease(nodes, name)
        async with by(request, "node.stay", name):
            await nodes.stay(name)
        return lease.model_copy(update={"leaves_in_s": None, "drained": False})

    @routes.post("/{name:path}/preempt", openapi_extra=_body_of(NoticeSection, required=True))
    async def preempt(name: str, request: Request) -> Lease:
        """It will be gone by then. Until then it gets what is expected to be done in time."""
        section = read_section(NoticeSection, await request.body())
        async with by(request, "node.preempt", name):
            await nodes.leave_in(name, section.in_s, draining=False, own=True)
        return _lease(nodes, name)


def _add_looks(routes: APIRouter, nodes: Nodes, by: _By) -> None:
    @routes.get("")
    async def list_nodes() -> WorkersShown:
        """All workers, whether configured, registered or discovered."""
        now_s, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        shown = [WorkerShown.of(member, nodes, now_s) for member in nodes.members()]
        stays = await nodes.sessions(now_ms - LOOK_BACK_MS)
        return WorkersShown(
            nodes=shown, histories={name: history(sessions, now_ms) for name, sessions in stays.items()}
        )

    @routes.get("/{name:path}")
    async def get_node(name: str) -> NodeShown:
        now_s, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        shown = [WorkerShown.of(member, nodes, now_s) for member in nodes.members(name)]
        stays = await nodes.sessions(now_ms - LOOK_BACK_MS, name)
        return NodeShown(
            name=name, workers=shown, history=history(stays[name], now_ms) if name in stays else None
        )

    @routes.delete("/{name:path}", status_code=204)
    async def remove(name: str, request: Request) -> None:
        """A node that has registered leaves: nothing new, and what runs there finishes."""
        async with by(request, "node.remove", name):
            await nodes.remove(name)
