"""Which Redis a URL means: one server, the primary that Sentinels name, or the part of a cluster that has our keys.

    redis://USER:PASSWORD@HOST:PORT/NUMBER
    redis+sentinel://USER:PASSWORD@SENTINEL:PORT,SENTINEL:PORT/SERVICE/NUMBER?sentinel_password=...
    redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT

`rediss` instead of `redis` is by TLS, to Sentinels as well. User, password and options are those of redis-py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["single", "sentinel", "cluster"]
Address = tuple[str, int]

FORMS = (
    "memory://, redis://HOST:PORT/NUMBER, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/NUMBER or "
    "redis+cluster://HOST:PORT,HOST:PORT"
)
_SCHEME = re.compile(r"redis(s?)(?:\+(sentinel|cluster))?")
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_PATHS = {
    "single": r"/?(?P<number>[0-9]{0,4})",
    "sentinel": r"/(?P<service>[^/]+)(?:/(?P<number>[0-9]{0,4}))?",
    "cluster": r"/?0?",
}
_OF_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_OF_SENTINELS = ("sentinel_username", "sentinel_password")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class RedisUrl(Struct, frozen=True):
    """What is in it."""

    kind: Kind
    nodes: tuple[Address, ...]
    """Of a cluster, some of them; of what Sentinels look after, the Sentinels."""
    login: dict[str, str]
    tls: dict[str, str | bool] | None
    """None: in the clear."""
    number: int = 0
    """Of the database."""
    service: str = ""
    """By which name Sentinels know it."""
    sentinel_login: dict[str, str] = {}

    @classmethod
    def parse(cls, text: str) -> RedisUrl:
        """Raises ValueError, which quotes nothing: there may be a password in it."""
        try:
            url = urlsplit(text)
        except ValueError:
            raise ValueError(f"should be {FORMS}") from None
        scheme = _SCHEME.fullmatch(url.scheme)
        if scheme is None or re.search(r"\s|#", text):
            raise ValueError(f"should be {FORMS}")
        kind: Kind = scheme[2] or "single"  # type: ignore[assignment]  # as the expression has it
        credentials, _, hosts = url.netloc.rpartition("@")
        path = re.fullmatch(_PATHS[kind], url.path)
        if path is None:
            raise ValueError(_WRONG_PATH[kind])
        nodes = tuple(_addresses(hosts, 26379 if kind == "sentinel" else 6379))
        if kind == "single" and len(nodes) > 1:
            raise ValueError("has several hosts: say redis+sentinel:// or redis+cluster://")
        found = path.groupdict()
        tls, sentinel_login = _options(url.query, kind=kind, by_tls=bool(scheme[1]))
        return cls(
            kind,
            nodes,
            _login(credentials),
            tls,
            number=int(found.get("number") or 0),
            service=unquote(found.get("service") or ""),
            sentinel_login=sentinel_login,
        )

    @property
    def shown(self) -> str:
        """Where it is, without a secret."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        return f"{self.service} at {hosts}" if self.service else hosts


_WRONG_PATH: dict[Kind, str] = {
    "single": "should end with /NUMBER, that of the database, or with nothing",
    "sentinel": "should have /SERVICE, the name by which Sentinels know it, behind their addresses",
    "cluster": "should have nothing behind the addresses: a cluster has one database",
}


def _addresses(hosts: str, port: int) -> Iterator[Address]:
    for host in hosts.split(","):
        found = _HOST.fullmatch(host)
        if found is None or not 0 < int(found[3] or port) < 65_536:
            raise ValueError("should have a valid HOST:PORT, or several with commas between them")
        yield found[1] or found[2], int(found[3] or port)


def _login(credentials: str) -> dict[str, str]:
    username, _, password = credentials.partition(":")
    found = {"username": unquote(username), "password": unquote(password)}
    return {name: value for name, value in found.items() if value}


def _options(query: str, *, kind: Kind, by_tls: bool) -> tuple[dict[str, str | bool] | None, dict[str, str]]:
    tls: dict[str, str | bool] = {}
    login: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _OF_TLS:
            if not by_tls:
                raise ValueError(f"{name} is for rediss://, which is by TLS")
            tls[name] = value
        elif name in _OF_SENTINELS and kind == "sentinel":
            login[name.removeprefix("sentinel_")] = value
        else:
            known = _OF_TLS + (_OF_SENTINELS if kind == "sentinel" else ())
            raise ValueError(f"has an unknown option; known are {', '.join(known)}")
    if "ssl_check_hostname" in tls:
        said = str(tls["ssl_check_hostname"]).lower()
        if said not in _BOOLEANS:
            raise ValueError("ssl_check_hostname should be true or false")
        tls["ssl_check_hostname"] = _BOOLEANS[said]
    if "ssl_keyfile" in tls and "ssl_certfile" not in tls:
        raise ValueError("ssl_keyfile is the key of ssl_certfile, which is missing")
    return (tls if by_tls else None), login
