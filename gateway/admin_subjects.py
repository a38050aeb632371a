"""The routes below /admin for tenants, projects and keys, for the keys of administrators, and for the audit log."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request

from gateway.admin_keys import AdminKeys
from gateway.admin_models import (
    AdminKeyShown,
    AdminKeysShown,
    AdminKeyWithSecret,
    Audit,
    EntryShown,
    KeyChange,
    Keys,
    KeyShown,
    KeyWithSecret,
    NewAdminKey,
    NewKey,
    NewProject,
    NewTenant,
    Projects,
    ProjectShown,
    Rotation,
    TenantChange,
    Tenants,
    TenantShown,
    change_of,
    ms,
)
from gateway.audit import entries
from gateway.errors import ApiError
from gateway.subjects import CreatedKey, NotFound, Subjects

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from gateway.desk import Desk
    from gateway.subjects import Tenant

_Row = TypeVar("_Row")

Most = Annotated[int, Query(ge=1, le=1000, description="Most of them at once.")]


async def _subjects(request: Request) -> Subjects:
    desk: Desk = request.state.desk
    return Subjects(desk.store, desk.actor_of(request))


async def _admin_keys(request: Request) -> AdminKeys:
    desk: Desk = request.state.desk
    return AdminKeys(desk.store, desk.actor_of(request))


By = Annotated[Subjects, Depends(_subjects)]
ByAdminKeys = Annotated[AdminKeys, Depends(_admin_keys)]


def subject_routes(desk: Desk) -> APIRouter:
    """To be mounted where only administrators are let in, and those with role `read` only to look."""

    async def at_desk(request: Request) -> None:
        request.state.desk = desk

    routes = APIRouter(dependencies=[Depends(at_desk)])
    _add_tenants(routes, desk)
    _add_projects(routes, desk)
    _add_keys(routes, desk)
    _add_changes_of_keys(routes, desk)
    _add_admin_keys(routes, desk)
    _add_audit(routes, desk)
    return routes


def _add_tenants(routes: APIRouter, desk: Desk) -> None:
    def shown(tenant: Tenant) -> TenantShown:
        return TenantShown.of_either(tenant.name, desk.configured(), tenant)

    @routes.get("/tenants")
    async def list_tenants(by: By, after: str = "", most: Most = 100) -> Tenants:
        """By name, with those that only the configuration knows."""
        configured = desk.configured()
        there = {each.name: each for each in await asyncio.to_thread(by.list_tenants, after, most + 1)}
        others = (name for name in configured if name > after)
        names, last = _page(sorted({*there, *others})[: most + 1], most)
        data = [TenantShown.of_either(name, configured, there.get(name)) for name in names]
        return Tenants(data=data, after=last)

    @routes.post("/tenants", status_code=201)
    async def create_tenant(body: NewTenant, by: By) -> TenantShown:
        """A tenant is made with its first key as well."""
        policy = desk.policy(body.policy)
        return shown(await desk.change(lambda: by.create_tenant(body.name, policy, body.metadata)))

    @routes.get("/tenants/{tenant}")
    async def get_tenant(tenant: str, by: By) -> TenantShown:
        """One of the database, or of the configuration."""
        configured = desk.configured()
        try:
            return shown(await asyncio.to_thread(by.tenant, tenant))
        except NotFound:
            if tenant not in configured:
                raise
            return TenantShown.of_either(tenant, configured)

    @routes.patch("/tenants/{tenant}")
    async def change_tenant(tenant: str, body: TenantChange, by: By) -> TenantShown:
        """Its policy, whether it is suspended, its metadata."""
        desk.policy(body.policy)
        return shown(await desk.change(lambda: by.change_tenant(tenant, change_of(body))))


def _add_projects(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/tenants/{tenant}/projects")
    async def list_projects(tenant: str, by: By, after: str = "", most: Most = 100) -> Projects:
        """By name."""
        found = await asyncio.to_thread(by.list_projects, tenant, after, most + 1)
        shown, last = _page(found, most)
        return Projects(data=[ProjectShown.of(each) for each in shown], after=last and last.name)

    @routes.post("/tenants/{tenant}/projects", status_code=201)
    async def create_project(tenant: str, body: NewProject, by: By) -> ProjectShown:
        """What keys of a tenant can be put into; the tenant is made where there is none."""
        policy = desk.policy(body.policy)
        return ProjectShown.of(
            await desk.change(lambda: by.create_project(tenant, body.name, policy, body.metadata))
        )

    @routes.get("/tenants/{tenant}/projects/{project}")
    async def get_project(tenant: str, project: str, by: By) -> ProjectShown:
        return ProjectShown.of(await asyncio.to_thread(by.project, tenant, project))

    @routes.patch("/tenants/{tenant}/projects/{project}")
    async def change_project(tenant: str, project: str, body: TenantChange, by: By) -> ProjectShown:
        """Its policy, whether it is suspended, its metadata."""
        desk.policy(body.policy)
        return ProjectShown.of(await desk.change(lambda: by.change_project(tenant, project, change_of(body))))


def _add_keys(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/keys")
    async def list_keys(
        by: By,
        tenant: str | None = None,
        project: str | None = None,
        after: str | None = None,
        most: Most = 100,
    ) -> Keys:
        """By tenant and age, revoked ones too; without their secrets, which nobody has."""
        found = await asyncio.to_thread(by.list_keys, tenant, project, after, most + 1)
        shown, last = _page(found, most)
        return Keys(data=[KeyShown.of(each) for each in shown], after=last and last.id)

    @routes.post("/keys", status_code=201)
    async def create_key(body: NewKey, by: By) -> KeyWithSecret:
        """A new key, shown this once."""
        policy = desk.policy(body.policy)
        expires_ms = _future_ms(body.expires)
        created = await desk.change(
            lambda: by.create_key(
                body.tenant,
                body.name,
                policy,
                project=body.project,
                expires_ms=expires_ms,
                metadata=body.metadata,
            )
        )
        return _with_secret(created)

    @routes.get("/keys/{key}")
    async def get_key(key: str, by: By) -> KeyShown:
        """By its id, or enough of its start; so also below."""
        return KeyShown.of(await asyncio.to_thread(by.key, key))


def _add_changes_of_keys(routes: APIRouter, desk: Desk) -> None:
    @routes.patch("/keys/{key}")
    async def change_key(key: str, body: KeyChange, by: By) -> KeyShown:
        """Its policy, name, end and metadata."""
        desk.policy(body.policy)
        _future_ms(body.expires)
        return KeyShown.of(await desk.change(lambda: by.change_key(key, change_of(body))))

    @routes.post("/keys/{key}/rotate")
    async def rotate_key(key: str, by: By, body: Rotation | None = None) -> KeyWithSecret:
        """A new secret under the same id. The one of until now goes on for a while, and ends by itself."""
        overlap_ms = 1000 * (body or Rotation()).overlap_s
        return _with_secret(await desk.change(lambda: by.rotate_key(key, overlap_ms)))

    @routes.delete("/keys/{key}")
    async def revoke_key(key: str, by: By, tenant: str | None = None) -> KeyShown:
        """For good. With `tenant`, only if it is a key of that one."""
        return KeyShown.of(await desk.change(lambda: by.revoke_key(key, tenant)))


def _add_admin_keys(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/admin-keys")
    async def list_admin_keys(by: ByAdminKeys) -> AdminKeysShown:
        """Keys of administrators by age, revoked ones too."""
        return AdminKeysShown(data=[AdminKeyShown.of(each) for each in await asyncio.to_thread(by.all)])

    @routes.post("/admin-keys", status_code=201)
    async def create_admin_key(body: NewAdminKey, by: ByAdminKeys) -> AdminKeyWithSecret:
        """A new one, shown this once. It is good for administration and for no call."""
        expires_ms = _future_ms(body.expires)
        created = await desk.change(lambda: by.create(body.name, body.role, expires_ms))
        return AdminKeyWithSecret.of(created.record, key=created.secret)

    @routes.delete("/admin-keys/{key}")
    async def revoke_admin_key(key: str, by: ByAdminKeys) -> AdminKeyShown:
        """For good."""
        return AdminKeyShown.of(await desk.change(lambda: by.revoke(key)))


def _add_audit(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/audit")
    async def audit(
        tenant: str | None = None,
        subject: Annotated[str | None, Query(description="Such as `key:key_0123`, `tenant:acme`.")] = None,
        before: Annotated[
            int | None, Query(ge=1, lt=2**63, description="Only entries with a lower id.")
        ] = None,
        most: Most = 100,
    ) -> Audit:
        """Who has changed what, the newest first. Entries are never changed nor deleted."""
        found = await asyncio.to_thread(
            entries, desk.store, most=most + 1, before_id=before, tenant=tenant, subject=subject
        )
        shown, last = _page(found, most)
        return Audit(data=[EntryShown.of(each) for each in shown], before=last and last.id)


def _with_secret(created: CreatedKey) -> KeyWithSecret:
    return KeyWithSecret.of(created.record, key=created.secret)


def _page(found: Sequence[_Row], most: int) -> tuple[Sequence[_Row], _Row | None]:
    """At most so many, and the last of them where there are more."""
    return found[:most], found[most - 1] if len(found) > most else None


def _future_ms(moment: datetime | None) -> int | None:
    if moment is not None and moment.timestamp() <= time.time():
        raise ApiError("invalid_value", "expires: that is over", param="expires")
    return ms(moment)
