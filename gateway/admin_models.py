"""What administration over HTTP takes and shows, typed, so that its description says it all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Self

from msgspec import structs
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.admin_keys import Role  # noqa: TC001 - pydantic reads annotations at run time
from gateway.config_policy import PolicySection, as_given
from gateway.output import iso
from gateway.policy import Policy
from gateway.subjects import Change, Tenant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import Struct

    from gateway.audit import Entry

Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16, description="Your own words for it: up to 16 texts by name."),
]
ShownName = Annotated[str, Field(min_length=1, max_length=128, description="To recognise it by.")]
_MOST_OVERLAP_S = 90 * 86_400


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewTenant(_Body):
    name: str = Field(description="1 to 64 of A-Z a-z 0-9 . _ @ - starting with a letter or digit.")
    policy: PolicySection | None = None
    metadata: Metadata | None = None


class NewProject(NewTenant):
    pass


class NewKey(_Body):
    tenant: str = Field(description="Whose key it is; created with its first key.")
    project: str | None = Field(None, description="One that the tenant has.")
    name: ShownName | None = None
    expires: AwareDatetime | None = Field(None, description="When it ends by itself.")
    policy: PolicySection | None = None
    metadata: Metadata | None = None


class TenantChange(_Body):
    """What is not said stays as it is."""

    policy: PolicySection | None = Field(None, description="In place of the one it has; null for none.")
    metadata: Metadata | None = None
    suspended: bool = Field(
        default=False, description="While it is, no call is admitted; those under way end."
    )


class KeyChange(_Body):
    """What is not said stays as it is."""

    name: ShownName | None = None
    expires: AwareDatetime | None = Field(None, description="Null: it does not end by itself.")
    policy: PolicySection | None = Field(None, description="In place of the one it has; null for none.")
    metadata: Metadata | None = None


class Rotation(_Body):
    overlap_s: int = Field(
        86_400, ge=0, le=_MOST_OVERLAP_S, description="How long the secret of until now is still good."
    )


class NewAdminKey(_Body):
    name: ShownName | None = None
    role: Role = Field("read", description="`read` sees everything and changes nothing.")
    expires: AwareDatetime | None = None


def change_of(body: TenantChange | KeyChange) -> Change:
    """Only what it says."""
    said: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    if said.get("policy") is not None:
        said["policy"] = said["policy"].policy()
    if "expires" in said:
        said["expires_ms"] = ms(said.pop("expires"))
    return Change(**said)


class _Shown(BaseModel):
    """A record, with moments as text and its policy as it could be sent."""

    @classmethod
    def of(cls, record: Struct, **more: Any) -> Self:
        fields = dict(_field(name, value) for name, value in structs.asdict(record).items())
        return cls(**fields, **more)


class _OfSubject(_Shown):
    name: str
    created: str | None
    suspended: str | None = Field(description="Since when.")
    policy: dict[str, Any] | None = Field(description="Its own in the database, as it could be sent.")
    metadata: dict[str, str] | None


class TenantShown(_OfSubject):
    created: str | None = Field(description="Null: only the configuration knows it.")
    configured: bool = Field(description="Whether the configuration has a section for it.")
    config_policy: dict[str, Any] | None = Field(description="Its policy there, which bounds it as well.")

    @classmethod
    def of_either(
        cls, name: str, configured: Mapping[str, Policy], tenant: Tenant | None = None
    ) -> TenantShown:
        """A tenant of the database, of the configuration, or of both."""
        there = configured.get(name)
        policy = None if there is None else as_given(there) or None
        record = tenant or Tenant(name, 0)
        shown = cls.of(record, configured=there is not None, config_policy=policy)
        return shown if tenant else shown.model_copy(update={"created": None})


class ProjectShown(_OfSubject):
    tenant: str


class _OfKey(_Shown):
    id: str
    name: str | None
    prefix: str
    last4: str
    created: str
    expires: str | None
    revoked: str | None


class KeyShown(_OfKey):
    tenant: str
    project: str | None
    policy: dict[str, Any] | None
    metadata: dict[str, str] | None


class KeyWithSecret(KeyShown):
    key: str = Field(description="The key itself, shown this once.")


class AdminKeyShown(_OfKey):
    role: Role


class AdminKeyWithSecret(AdminKeyShown):
    key: str = Field(description="The key itself, shown this once.")


class EntryShown(BaseModel):
    """One change."""

    id: int
    time: str
    actor: str = Field(description="`master`, the id of an administrator's key, or who ran a command.")
    source: str = Field(description="The network address it came from, or the machine of the command.")
    action: str
    subject: str
    tenant: str | None
    before: dict[str, Any] | None = Field(description="What has changed, as it was.")
    after: dict[str, Any] | None

    @classmethod
    def of(cls, entry: Entry) -> Self:
        moment = datetime.fromtimestamp(entry.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return cls(
            id=entry.id,
            time=moment.replace("+00:00", "Z"),
            actor=entry.actor,
            source=entry.source,
            action=entry.action,
            subject=entry.subject,
            tenant=entry.tenant,
            before=entry.before,
            after=entry.after,
        )


_NEXT = Field(None, description="Ask for what follows with this as the parameter; null: this is the end.")


class Tenants(BaseModel):
    data: list[TenantShown]
    after: str | None = _NEXT


class Projects(BaseModel):
    data: list[ProjectShown]
    after: str | None = _NEXT


class Keys(BaseModel):
    data: list[KeyShown]
    after: str | None = _NEXT


class AdminKeysShown(BaseModel):
    data: list[AdminKeyShown]


class Audit(BaseModel):
    data: list[EntryShown]
    before: int | None = _NEXT


def ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def _field(name: str, value: Any) -> tuple[str, Any]:
    """As it is shown."""
    if name.endswith("_ms"):
        return name.removesuffix("_ms"), None if value is None else iso(value)
    return name, as_given(value) if isinstance(value, Policy) else value
