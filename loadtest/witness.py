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
    """0: what is asked for is no answer but an embedding."""
    stream: bool
    before: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the same chat: what was asked, and what was answered."""

    @property
    def path(self) -> str:
        return "/chat/completions" if self.max_tokens else "/embeddings"

    def body(self, model: str) -> bytes:
        if not self.max_tokens:
            return json.dumps({"model": model, "input": self.prompt}).encode()
        messages = [{"role": "user", "content": self.prompt}]
        for asked, answered in reversed(self.before):
            messages[:0] = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        fields: dict[str, Any] = {
            "model": model,
            "messages": messages,
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
            self.usage = (usage["prompt_tokens"], cached, usage.get("completion_tokens") or 0)
        if "data" in chunk:  # embeddings
            self.text = json.dumps([each["embedding"] for each in chunk["data"]])


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


class Line:
    """A connection that is kept from one call to the next."""

    def __init__(self) -> None:
        self.again = 0
        """Calls sent anew, since the connection was closed as they were sent, which HTTP allows for, and clients do."""
        self._kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        """The last says whether it has been used before."""
        kept, self._kept = self._kept, None
        if kept is not None and not kept[0].at_eof():
            return *kept, True
        if kept is not None:
            kept[1].close()
        return *(await asyncio.open_connection(host, port)), False

    def keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._kept = reader, writer

    def close(self) -> None:
        if self._kept is not None:
            self._kept[1].close()


async def ask(
    url: str,
    key: str,
    model: str,
    asked: Question,
    timeout_s: float,
    *,
    line: Line | None = None,
    request_id: str = "",
) -> Seen:
    """Send a call, on a connection of its own where no `line` is given. Whatever goes wrong is in the outcome, before
    anything is compared.
    """
    hearing, begun_s = Hearing(stream=asked.stream), time.monotonic()
    parts = urlsplit(url)
    body, named = asked.body(model), f"x-request-id: {request_id}\r\n" if request_id else ""
    head = (
        f"POST {parts.path}{asked.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{named}"
        f"{'connection: close' if line is None else 'connection: keep-alive'}\r\n\r\n"
    )
    try:
        async with asyncio.timeout(timeout_s):
            await _exchange((parts.hostname or "", parts.port or 80), head.encode() + body, hearing, line)
        outcome = _judged(hearing, asked)
    except TimeoutError:
        outcome = "timeout"
    except OSError as error:
        outcome = f"connection: {type(error).__name__}"
    except (ValueError, httptools.HttpParserError) as error:
        outcome = f"malformed: {type(error).__name__}"
    silence_s = hearing.silence_s if asked.stream else 0.0
    return Seen(asked, outcome, hearing.reply, begun_s, time.monotonic(), silence_s, hearing.headers)


async def _exchange(address: tuple[str, int], request: bytes, hearing: Hearing, line: Line | None) -> None:
    reader, writer, used = await (line or Line()).open(*address)
    kept = heard = False
    try:
        try:
            writer.write(request)
            while not hearing.complete and (block := await reader.read(65536)):
                heard = True
                hearing.parser.feed_data(block)
        except ConnectionError:
            if heard or not used:
                raise
        if line is not None and hearing.complete and hearing.parser.should_keep_alive():
            line.keep(reader, writer)
            kept = True
    finally:
        if not kept:
            writer.close()
    if line is not None and used and not heard:
        line.again += 1
        await _exchange(address, request, hearing, line)


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
    if asked.max_tokens and (len(reply.ids), len(reply.finish_reasons), reply.roles) != (1, 1, 1):
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
