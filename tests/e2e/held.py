"""A worker that answers each call when the test says so, and tells which calls have reached it and which have left.

Calls are told apart by their `user`.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import TYPE_CHECKING, Self

from failing import LAST, STREAM, chunk, event, whole
from scripted import OK, Server

if TYPE_CHECKING:
    from scripted import Peer

REPLY = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "sim",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "high"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
}


class HeldWorker:
    def __init__(self) -> None:
        self.reached: list[str] = []
        self.left: list[str] = []
        """Those that were given up before they were answered."""
        self._answers: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._server = Server(self._script)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def answer(self, *names: str) -> None:
        """Answer these calls as soon as they are here."""
        for name in names:
            self._answers[name].set()

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.__aexit__(*exc)

    async def _script(self, peer: Peer) -> None:
        while True:
            body = await peer.request()
            if not body:
                await peer.send(OK)  # a health check
                continue
            call = json.loads(body)
            self.reached.append(call["user"])
            if not await self._held(peer, call["user"]):
                self.left.append(call["user"])
                return
            if call.get("stream"):
                await peer.send(STREAM + chunk("high"), chunk("", "stop"), event(b"[DONE]"), LAST)
            else:
                await peer.send(whole(json.dumps(REPLY).encode()))

    async def _held(self, peer: Peer, name: str) -> bool:
        """Wait until the call may be answered; False where its client has left before."""
        may = asyncio.create_task(self._answers[name].wait())
        left = asyncio.create_task(peer.lost())
        try:
            await asyncio.wait((may, left), return_when=asyncio.FIRST_COMPLETED)
            return may.done()
        finally:
            may.cancel()
            left.cancel()
            await asyncio.gather(may, left, return_exceptions=True)
