"""The sections of the configuration that say where the gateway listens: for calls, and for those who look after it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gateway.config_section import Location, NetworkText, Section, given_in, no_boolean, processes
from gateway.config_tls import TlsSection  # noqa: TC001 - pydantic reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LOOPBACK = "127.0.0.1"
_ALL = {"0.0.0.0": LOOPBACK, "::": "::1"}
_Port = Annotated[int, BeforeValidator(no_boolean), Field(ge=0, le=65_535)]


class Address(Section):
    host: str = Field(LOOPBACK, min_length=1, description="Address to listen on; 0.0.0.0 for all.")
    port: _Port = Field(description="Port to listen on; 0 lets the system choose one.")

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def reached_at(self) -> str:
        """From this machine, as in a URL."""
        host = _ALL.get(self.host, self.host).strip("[]")
        return f"[{host}]" if ":" in host else host


class Listen(Address):
    port: _Port = Field(8000, description="Port to listen on; 0 lets the system choose one.")
    trusted_proxies: frozenset[NetworkText] = Field(
        frozenset(),
        description="Networks of proxies whose `x-forwarded-for` is believed, where keys are bound to networks.",
    )


class Server(Section):
    workers: Annotated[int | Literal["auto"], BeforeValidator(processes)] = Field(
        1,
        description="Processes that serve, on one address; `auto`: one for each core. With limits, more than one takes Redis.",
    )
    tls: TlsSection | None = Field(None, description="Speak TLS with clients; without it, plain HTTP.")

    @property
    def scheme(self) -> str:
        return "http" if self.tls is None else "https"


class Admin(Section):
    listen: Address | None = Field(
        None,
        description="An address of its own for `/admin`, administrators' `/console` and `/metrics`, which are then nowhere else; "
        "without it, they are where calls are.",
    )
    tls: TlsSection | None = Field(
        None, description="The certificate shown there; without it, that of `server.tls`."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        if given.get("tls") is not None and given.get("listen") is None:
            yield ("tls",), "is for admin.listen, which is not set"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def open_to_anyone(given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """Addresses that others can reach, where no keys are asked for and nobody has said that this is meant."""
    auth = given.get("auth")
    meant = str(given_in(auth, "allow_public")).lower() in {"true", "yes", "on", "1"}
    if given_in(auth, "mode") != "none" or meant:
        return
    for key, section in (
        ("listen", given.get("listen")),
        ("admin.listen", given_in(given.get("admin"), "listen")),
    ):
        host = str(given_in(section, "host") or LOOPBACK)
        if not is_loopback(host):
            advice = "set auth.allow_public: true if that is meant"
            yield ("auth", "mode"), f"none on {key}.host {host} lets anyone in; {advice}"


def same_twice(given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """Both addresses cannot be one."""
    public, admin = given.get("listen"), given_in(given.get("admin"), "listen")
    port = str(given_in(admin, "port"))
    if port not in {"0", "None"} and port == str(given_in(public, "port") or 8000):
        hosts = {str(given_in(each, "host") or LOOPBACK) for each in (public, admin)}
        if len(hosts) == 1 or hosts & _ALL.keys():
            yield ("admin", "listen", "port"), f"{port} is listen.port as well; give it a port of its own"
