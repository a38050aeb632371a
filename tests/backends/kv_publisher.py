"""What publishes KV events in tests, as vLLM 0.32 does."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import msgspec
import pytest

zmq = pytest.importorskip("zmq", reason="no pyzmq here")
zmq_asyncio = pytest.importorskip("zmq.asyncio")
LIMIT_S = 30.0
END = (-1).to_bytes(8, "big", signed=True)


class Publisher:
    """Publishes as vLLM 0.32 does: PUB for events, ROUTER for replays of what its buffer holds."""

    def __init__(self, port: int = 0, replay_port: int = 0) -> None:
        self.number = 0
        self.ts = 1.0
        self.buffer: list[tuple[int, bytes]] = []
        self.asked_again: list[int] = []
        self._ports = (port, replay_port)

    async def __aenter__(self) -> Self:
        self._context = zmq_asyncio.Context()
        self._pub = self._context.socket(zmq.XPUB)  # a PUB that shows who subscribes
        self._router = self._context.socket(zmq.ROUTER)
        self.events, self.replay = (
            f"tcp://127.0.0.1:{self._bind(socket, port)}"
            for socket, port in zip((self._pub, self._router), self._ports, strict=True)
        )
        self._serving = asyncio.create_task(self._serve_replays())
        return self

    def _bind(self, socket: Any, port: int) -> int:
        if port:
            socket.bind(f"tcp://127.0.0.1:{port}")
            return port
        return socket.bind_to_random_port("tcp://127.0.0.1")

    async def __aexit__(self, *exc_info: object) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._context.destroy(linger=0)

    async def subscribed(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self._pub.recv()

    async def publish(self, *events: dict[str, Any], lose: bool = False) -> None:
        self.ts += 0.001
        payload = msgspec.msgpack.encode([self.ts, list(events), 0])
        self.buffer.append((self.number, payload))
        if not lose:
            await self.send(self.number, payload)
        self.number += 1

    async def send(self, number: int, payload: bytes) -> None:
        await self._pub.send_multipart((b"kv-events", number.to_bytes(8, "big"), payload))

    async def _serve_replays(self) -> None:
        while True:
            client, _, start = await self._router.recv_multipart()
            first = int.from_bytes(start, "big")
            self.asked_again.append(first)
            for number, payload in self.buffer:
                if number >= first:
                    await self._router.send_multipart(
                        (client, b"", b"kv-events", number.to_bytes(8, "big"), payload)
                    )
            await self._router.send_multipart((client, b"", b"", END, b""))


def stored(*hashes: int, session_id: str | None = None) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": None,
        "token_ids": list(range(16 * len(hashes))),
        "block_size": 16,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "session_id": session_id,
    }
