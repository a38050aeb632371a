"""The console's own files, from memory: each is read once, at the start.

They are served below a path that has a hash of all of them in it, so a browser may keep them for ever, and a gateway of
another version never meets half of this one's. Only the page that names them is asked for anew.
"""

from __future__ import annotations

from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

ROOT = "/console"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No inline script or style, and nothing from elsewhere."""
SAFE = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of whatever the console is made of."""
_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


class Asset(Struct, frozen=True):
    content: bytes
    media_type: str
    etag: str


class Assets:
    def __init__(self) -> None:
        files = dict(sorted(_files(resources.files("gateway.console") / "static", "")))
        every = sha256()
        for name, content in files.items():
            every.update(name.encode() + b"\0" + content)
        self.version = every.hexdigest()[:16]
        """Of all of them together."""
        page = files.pop("index.html").replace(b"{assets}", f"{ROOT}/assets/{self.version}".encode())
        self.page = _asset("index.html", page)
        self._files = {name: _asset(name, content) for name, content in files.items()}

    def find(self, name: str) -> Asset | None:
        return self._files.get(name)


def _asset(name: str, content: bytes) -> Asset:
    etag = f'"{sha256(content).hexdigest()[:24]}"'
    return Asset(content, _TYPES[name.rpartition(".")[2]], etag)


def _files(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for each in folder.iterdir():
        name = prefix + each.name
        if each.is_dir():
            found += _files(each, f"{name}/")
        elif name.rpartition(".")[2] in _TYPES:
            found.append((name, each.read_bytes()))
    return found
