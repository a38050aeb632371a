"""As much of a Kubernetes API server as EndpointSlices take: list, watch with bookmarks, and versions that grow too old."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

from scripted import Server

if TYPE_CHECKING:
    from scripted import Peer

PATH = "/apis/discovery.k8s.io/v1/namespaces/pool/endpointslices"
TOKEN = "token-of-the-pod"


def pod(name: str, address: str = "127.0.0.1", **conditions: bool) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": conditions,
        "targetRef": {"kind": "Pod", "namespace": "pool", "name": name},
    }


class KubernetesApi:
    def __init__(self) -> None:
        self.version = 100
        self.oldest = 0
        """Watches from a version before this one are refused with 410."""
        self.slices: dict[str, dict[str, Any]] = {}
        self.lists = self.watches = 0
        self.selectors: list[str] = []
        self.refuses = 0
        """So many requests are refused first."""
        self.token = TOKEN
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._changed = asyncio.Condition()
        self._watching: set[Peer] = set()
        self._server = Server(self._script)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.__aexit__(*exc)

    async def put(self, name: str, port: int, *endpoints: dict[str, Any]) -> None:
        kind = "MODIFIED" if name in self.slices else "ADDED"
        ports = [{"name": "metrics", "port": 9}, {"name": "http", "port": port, "protocol": "TCP"}]
        self.slices[name] = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "pool"},
            "addressType": "IPv4",
            "endpoints": list(endpoints) or None,
            "ports": ports,
        }
        await self._event(kind, self.slices[name])

    async def delete(self, name: str) -> None:
        await self._event("DELETED", self.slices.pop(name))

    async def bookmark(self) -> None:
        await self._event("BOOKMARK", {"kind": "EndpointSlice", "metadata": {}})

    async def send_error(self, code: int) -> None:
        """An event to those who watch, after which nothing comes."""
        status = {"kind": "Status", "code": code, "message": "too old resource version", "reason": "Expired"}
        for peer in tuple(self._watching):
            await peer.send(_line({"type": "ERROR", "object": status}))

    def cut(self) -> None:
        """End all watches without a word."""
        for peer in tuple(self._watching):
            peer.reset()

    async def watched(self) -> None:
        async with asyncio.timeout(60):
            while not self._watching:  # noqa: ASYNC110 - what it waits for has no event
                await asyncio.sleep(0.005)

    async def _event(self, kind: str, changed: dict[str, Any]) -> None:
        self.version += 1
        stamped = {**changed, "metadata": {**changed["metadata"], "resourceVersion": str(self.version)}}
        async with self._changed:
            self._events.append((self.version, kind, stamped))
            self._changed.notify_all()

    async def _script(self, peer: Peer) -> None:
        while True:
            await peer.request()
            head = peer.requests[-1][0].decode()
            target = urlsplit(head.split(" ")[1])
            asked = {key: values[0] for key, values in parse_qs(target.query).items()}
            token = re.search(r"authorization: Bearer (\S+)", head, re.IGNORECASE)
            if self.refuses or target.path != PATH or token is None or token[1] != self.token:
                self.refuses = max(0, self.refuses - 1)
                await peer.send(_reply(403, {"kind": "Status", "code": 403, "message": "not for you"}))
            elif asked.get("watch") == "1":
                self.watches += 1
                await self._watch(peer, int(asked["resourceVersion"]))
                return
            else:
                self.lists += 1
                self.selectors.append(asked["labelSelector"])
                meta = {"resourceVersion": str(self.version)}
                items = list(self.slices.values()) or None
                await peer.send(_reply(200, {"kind": "EndpointSliceList", "metadata": meta, "items": items}))

    async def _watch(self, peer: Peer, since: int) -> None:
        if since < self.oldest:
            await peer.send(_reply(410, {"kind": "Status", "code": 410, "message": "too old"}))
            await peer.fin()
            return
        await peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._watching.add(peer)
        try:
            while True:
                async with self._changed:
                    while not (due := [event for event in self._events if event[0] > since]):
                        await self._changed.wait()
                for version, kind, changed in due:
                    await peer.send(_line({"type": kind, "object": changed}))
                    since = version
        finally:
            self._watching.discard(peer)


def _reply(status: int, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(content)) + content


def _line(event: object) -> bytes:
    content = json.dumps(event).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(content), content)
