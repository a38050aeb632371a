"""A client that knows the right answer: sends one call, reads all of the reply and says what was wrong with it.

The simulated worker's answer is a function of the prompt, so what an undisturbed worker says is asked for beforehand and
compared: text, finish_reason, usage. Of a stream, also that it is one: one id, one role, one end, and never silent for long.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from loadtest.sample import OK

if TYPE_CHECKING:
    from random import Random

_WORDS = (
    "tide",
    "ebb",
    "flood",
    "moon",
    "harbour",
    "spring",
    "neap",
    "water",
    "high",
    "low",
    "pilot",
    "current",
)


class Question(Struct, frozen=True):
    prompt: str
    max_tokens: int
    stream: bool

    def body(self, model: str) -> bytes:
        fields: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
        }
        if self.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(fields).encode()


def question(dice: Random, tokens: tuple[int, int], *, stream: bool) -> Question:
    """One with a prompt of 20 to 200 words, and an answer of so many tokens at least and at most."""
    words = " ".join(dice.choice(_WORDS) for _ in range(dice.randint(20, 200)))
    return Question(words, dice.randint(*tokens), stream)


class Reply(Struct):
    """What a client makes of a reply."""

    text: str = ""
    finish_reasons: list[str] = []
    usage: tuple[int, int, int] | None = None
    """Prompt, cached of it, completion."""
    ids: set[str] = set()
    roles: int = 0
    error: str = ""
    message: str = ""
    ended: bool = False
    """With a whole body, or with [DONE]."""

    def take(self, choice: dict[str, Any]) -> None:
        said = choice.get("delta") or choice.get("message") or {}
        self.text += said.get("content") or ""
        self.roles += "role" in said
        if choice.get("finish_reason"):
            self.finish_reasons.append(choice["finish_reason"])

    def read(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.error = str((chunk["error"] or {}).get("code"))
            self.message = str((chunk["error"] or {}).get("message"))
        self.ids.add(chunk.get("id", ""))
        for choice in chunk.get("choices") or ():
            self.take(choice)
        if chunk.get("usage"):
            usage = chunk["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self.usage = (usage["prompt_tokens"], cached, usage["completion_tokens"])


class Seen(Struct, frozen=True):
    """One call as its client saw it."""

    question: Question
    outcome: str
    reply: Reply
    begun_s: float
    ended_s: float
    silence_s: float
    """The longest, from the sending of the call on where it is a stream."""
    headers: dict[str, str]


class Hearing:
    """One call on a connection of its own."""

    def __init__(self, *, stream: bool) -> None:
        self.reply = Reply(finish_reasons=[], ids=set())
        self.headers: dict[str, str] = {}
        self.silence_s = 0.0
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)
        self._stream = stream
        self._rest = b""
        self._heard_s = time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, piece: bytes) -> None:
        now_s = time.monotonic()
        self.silence_s = max(self.silence_s, now_s - self._heard_s)
        self._heard_s = now_s
        self._rest += piece
        if self._stream and self.parser.get_status_code() == 200:
            *events, self._rest = self._rest.split(b"\n\n")
            for event in events:
                self._event(event.removeprefix(b"data: "))

    def on_message_complete(self) -> None:
        self.complete = True
        if not self._stream or self.parser.get_status_code() != 200:
            self.reply.read(json.loads(self._rest))
            self.reply.ended = True

    def _event(self, content: bytes) -> None:
        if content == b"[DONE]":
            self.reply.ended = True
        elif not content.startswith(b":"):
            self.reply.read(json.loads(content))


async def ask(url: str, key: str, model: str, asked: Question, timeout_s: float) -> Seen:
    """Send a call. Whatever goes wrong is in the outcome, before anything is compared."""
    hearing, begun_s = Hearing(stream=asked.stream), time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            await _exchange(url, key, asked.body(model), hearing)
        outcome = _judged(hearing, asked)
    except TimeoutError:
        outcome = "timeout"
    except OSError as error:
        outcome = f"connection: {type(error).__name__}"
    except (ValueError, httptools.HttpParserError) as error:
        outcome = f"malformed: {type(error).__name__}"
    silence_s = hearing.silence_s if asked.stream else 0.0
    return Seen(asked, outcome, hearing.reply, begun_s, time.monotonic(), silence_s, hearing.headers)


async def _exchange(url: str, key: str, body: bytes, hearing: Hearing) -> None:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        head = (
            f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        while not hearing.complete and (block := await reader.read(65536)):
            hearing.parser.feed_data(block)
    finally:
        writer.close()


def _judged(hearing: Hearing, asked: Question) -> str:
    reply, status = hearing.reply, 0
    if hearing.headers:
        status = hearing.parser.get_status_code()
    if status != 200:
        return f"status {status} {reply.error}".strip()
    if reply.error:
        return f"error event {reply.error}"
    if not hearing.complete or not reply.ended:
        return "cut off"
    if len(reply.ids) != 1 or len(reply.finish_reasons) != 1 or reply.roles != 1:
        return f"{len(reply.ids)} ids, {reply.roles} roles, {len(reply.finish_reasons)} ends"
    if asked.stream and reply.usage is None:
        return "no usage"
    return OK


def compared(seen: Seen, expected: Reply) -> str:
    """The outcome, once the answer is held against what an undisturbed worker has said."""
    if seen.outcome != OK:
        return seen.outcome
    if seen.reply.text != expected.text:
        return "another text"
    if seen.reply.finish_reasons != expected.finish_reasons:
        return "another finish_reason"
    told, right = seen.reply.usage, expected.usage
    if told is None or right is None or (told[0], told[2]) != (right[0], right[2]):
        return "another usage"
    return OK
