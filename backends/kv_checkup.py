"""Whether a worker's KV events are to be had, and are about what it computes: looked into once, for `tidegate doctor`.

An idle worker publishes nothing, so one that is asked nothing looks like an address that is wrong. Here it is sent a prompt
that nobody has sent before, of which its events have to tell.
"""

from __future__ import annotations

import asyncio
import secrets
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from backends.kv_blocks import BlockStored, decode_batch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from backends.kv_events import KvSource

    Ask = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
    Line = tuple[Literal["ok", "error"], str, str]

SETTLE_S = 0.5
"""From the moment that a connection stands until the publisher surely knows of the subscription."""
WORDS = 200
"""Of the prompt: many blocks' worth of tokens, whatever the tokenizer."""
_END = (-1).to_bytes(8, "big", signed=True)

HOW = (
    """start the worker with --kv-events-config '{"enable_kv_cache_events": true, "publisher": "zmq", """
    """"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}', or correct """
)


async def kv_findings(source: KvSource, ask: Ask, within_s: float) -> list[Line]:
    """What is found, with what to do about it. `ask` sends a call to the worker."""
    if find_spec("zmq") is None:
        return [
            ("error", "KV events cannot be followed: there is no pyzmq", "pip install 'tidegate[kv-events]'")
        ]
    from zmq.asyncio import Context  # noqa: PLC0415 - an extra

    context = Context()
    try:
        found = [await _events(context, source.events, ask, within_s)]
        if source.replay is not None:
            found.append(await _replay(context, source.replay, within_s))
        return found
    finally:
        context.destroy(linger=0)


async def _events(context: Any, address: str, ask: Ask, within_s: float) -> Line:
    import zmq  # noqa: PLC0415 - an extra

    with context.socket(zmq.SUB) as subscription:
        with subscription.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            subscription.set(zmq.SUBSCRIBE, b"")
            subscription.connect(address)
            stands = await monitor.poll(within_s * 1000)
            subscription.disable_monitor()
        if not stands:
            return "error", f"nobody publishes KV events at {address}", f"{HOW}kv_events"
        await asyncio.sleep(SETTLE_S)
        prompt = " ".join(secrets.token_hex(3) for _ in range(WORDS))
        answer = await ask("/completions", {"prompt": prompt, "max_tokens": 1, "temperature": 0})
        if isinstance(answer, str):
            return "error", f"KV events could not be tried: {answer}", "see its log"
        tokens = 0
        while await subscription.poll(within_s * 1000):
            frames = await subscription.recv_multipart()
            try:
                events = decode_batch(frames[-1]).events if len(frames) >= 2 else []
            except msgspec.DecodeError:
                return (
                    "error",
                    f"what {address} publishes are no KV events that are understood",
                    "correct kv_events, or run a vLLM that publishes as 0.32 does",
                )
            tokens += sum(
                len(each.block_hashes) * each.block_size for each in events if isinstance(each, BlockStored)
            )
            if tokens:
                return "ok", f"KV events of {address} tell of what it computes", ""
    return (
        "error",
        f"{address} says nothing of a prompt that the worker has just computed",
        "correct kv_events: it may be another worker's; or switch on --enable-prefix-caching there",
    )


async def _replay(context: Any, address: str, within_s: float) -> Line:
    import zmq  # noqa: PLC0415 - an extra

    with context.socket(zmq.DEALER) as socket:
        socket.connect(address)
        await socket.send_multipart((b"", (0).to_bytes(8, "big")))
        while await socket.poll(within_s * 1000):
            frames = await socket.recv_multipart()
            if len(frames) >= 2 and frames[-2] == _END:
                return "ok", f"{address} sends events again", ""
    return "error", f"{address} sends no events again", f"{HOW}kv_replay"
