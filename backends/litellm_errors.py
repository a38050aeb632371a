"""What litellm raises, translated once into the failures of backends/base.py.

litellm maps providers' errors to OpenAI's exceptions and loses the status and the headers on the way: Anthropic's 529
becomes a 500, `retry-after` is gone. The provider's own reply, or the break in the connection, is still there as the
cause of the cause, so that is looked at first; litellm's class decides where nothing else does. Classes are told by name:
the library is not imported here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from backends.base import (
    AttemptFailed,
    CallRejected,
    ConnectFailed,
    ConnectTimeout,
    Misconfigured,
    Overloaded,
    ReplyBroken,
    ReplyLate,
    ReplyMalformed,
    ServerFault,
    TlsFailed,
    Unsupported,
    conceal,
)
from backends.refusal import BUSY_RETRY_S, refusal, rejection

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEEPEST = 20
_OVERLOADED = 529
_MESSAGE_LIMIT = 2000
_PREFIX = re.compile(r"^(litellm\.)?\w*(Error|Exception|Timeout)(: | - )")
_ADVICE = re.compile(r"\n?Traceback \(most recent|\. Handle with `litellm|\nThis looks like a bug in LiteLLM")
_OURS = ("AuthenticationError", "PermissionDeniedError", "NotFoundError", "LiteLLMUnknownProvider")
"""What is wrong with our key or our model's name is not the tenant's fault, whatever the status."""
_OUR_FAULT = re.compile(
    r"credit balance is too low|billing|API key|model identifier is invalid|on-demand throughput",
    re.IGNORECASE,
)
"""What some providers answer with a 400."""
_RETRY_DELAY = re.compile(rb'"retryDelay"\s*:\s*"([0-9.]+)s"')
"""Google says it in the body."""
_FAULT = re.compile(r"(internalServer|modelStreamError|modelTimeout|serviceUnavailable)Exception")
"""Bedrock's, in the midst of a stream."""
_CODES = {
    "ContextWindowExceededError": "context_length_exceeded",
    "ContentPolicyViolationError": "content_policy_violation",
}
_BREAKS: dict[str, type[AttemptFailed]] = {
    "ConnectTimeout": ConnectTimeout,
    "ConnectError": ConnectFailed,
    "ReadTimeout": ReplyLate,
    "WriteTimeout": ReplyLate,
    "PoolTimeout": ReplyLate,
    "ReadError": ReplyBroken,
    "WriteError": ReplyBroken,
    "RemoteProtocolError": ReplyBroken,
    "JSONDecodeError": ReplyMalformed,
    "ChecksumMismatch": ReplyMalformed,
    "InvalidHeadersLength": ReplyMalformed,
    "InvalidPayloadLength": ReplyMalformed,
}
"""Of httpx, to which litellm's other transports are mapped, and of botocore's event stream."""


def failure(
    error: BaseException, secrets: Iterable[str], *, begun: bool = False
) -> AttemptFailed | CallRejected:
    """The failure that an error of litellm's is, without any of the secrets in it.

    A call whose reply has `begun` was not wrong.
    """
    translated = _translated(error)
    if begun and isinstance(translated, CallRejected | Unsupported):
        translated = ServerFault(str(translated))
    conceal(secrets, translated)
    return translated


def _translated(error: BaseException) -> AttemptFailed | CallRejected:
    chain = _chain(error)
    for each in chain:
        if isinstance(each, AttemptFailed | CallRejected):
            return each
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
    reply = next((each.response for each in chain if type(each).__name__ == "HTTPStatusError"), None)
    if reply is not None:
        return _refused(reply, kinds)
    for each in chain:
        failed = _BREAKS.get(type(each).__name__)
        if failed is ConnectFailed and any("certificate" in name.lower() or "SSL" in name for name in kinds):
            failed = TlsFailed
        if failed is not None:
            return failed(_words(error))
    if _FAULT.match(_words(error)) or any(type(each).__name__ == "APIError" for each in chain):
        return ServerFault(_words(error))  # said in the midst of a stream
    return _judged(error, kinds)


def _chain(error: BaseException) -> list[Any]:
    """The error, and what it was raised for, the outermost first."""
    found: list[Any] = []
    at: BaseException | None = error
    while at is not None and at not in found and len(found) < _DEEPEST:
        found.append(at)
        original = getattr(at, "original_exception", None)
        at = original if isinstance(original, BaseException) else at.__cause__ or at.__context__
    return found


def _refused(reply: Any, kinds: set[str]) -> AttemptFailed | CallRejected:
    """By the provider's own reply."""
    headers = {name.lower().encode(): value.encode() for name, value in reply.headers.items()}
    body = reply.content if reply.is_stream_consumed or reply.is_closed else b""
    if body.lstrip()[:1] == b"[":  # Gemini, asked for a stream
        body = body.strip().removeprefix(b"[").removesuffix(b"]")
    status = reply.status_code
    if b"retry-after" not in headers and (pause := _RETRY_DELAY.search(body)):
        headers[b"retry-after"] = pause[1]
    refused = refusal(503 if status == _OVERLOADED else status, headers, body)
    if isinstance(refused, CallRejected):
        # Of a 404 too: path and model are from our configuration.
        if status == 404 or kinds.intersection(_OURS) or _OUR_FAULT.search(refused.message):
            return Misconfigured(f"the endpoint answered {status}: {refused.message}", status)
        refused.code = refused.code or next((code for name, code in _CODES.items() if name in kinds), None)
        return rejection(refused)
    return refused


def _judged(error: BaseException, kinds: set[str]) -> AttemptFailed | CallRejected:
    """By litellm's class: no reply has come, or one that said so in its midst."""
    words = _words(error)
    code = next((code for name, code in _CODES.items() if name in kinds), None)
    meanings: tuple[tuple[Iterable[str], AttemptFailed | CallRejected], ...] = (
        (_OURS, Misconfigured(words)),
        (("ImportError",), Misconfigured(f"litellm lacks a package: {words}")),
        (("UnsupportedParamsError",), Unsupported(words.partition(" To drop these")[0])),
        (("RateLimitError",), Overloaded(words, 429, BUSY_RETRY_S)),
        (("Timeout",), ReplyLate(words)),
        (("BadRequestError", "UnprocessableEntityError"), rejection(CallRejected(400, words, None, code))),
        # Whatever litellm stumbled over was in the call, for nothing has come in: no word on the endpoint's health.
        (("APIConnectionError",), Unsupported(f"litellm cannot send this call: {words}")),
        (("APIError", "APIStatusError"), ServerFault(words)),
    )
    for names, meaning in meanings:
        if kinds.intersection(names):
            return meaning
    return Unsupported(f"litellm cannot send this call: {words}")


def _words(error: BaseException) -> str:
    """What it says, without the names of exceptions in front, and without the traceback and advice behind."""
    text = str(getattr(error, "message", None) or error)
    while (shorter := _PREFIX.sub("", text)) != text:
        text = shorter
    text = _ADVICE.split(text, maxsplit=1)[0]
    return text[:_MESSAGE_LIMIT].strip() or type(error).__name__
