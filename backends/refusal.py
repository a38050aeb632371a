"""Which failure a reply is that is no success, by its status and by its words.

A worker's 400 is the client's own mistake and goes back to it, but for those that are known to be of this worker's making.
Everything else says something of the worker, of our account with a provider or of the key that was sent, and another one
may do better. What follows from each failure stands in routing/failure.py.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from backends.base import (
    AttemptFailed,
    CallRejected,
    CallTooLarge,
    ContextTooShort,
    EngineDead,
    KeyRefused,
    Leaving,
    Misconfigured,
    ModelMissing,
    OutOfMemory,
    Overloaded,
    RateLimited,
    Refused,
    ServerFault,
    Unable,
)
from backends.pause import asked_pause_s

BUSY_RETRY_S = 1.0
"""How long an endpoint that is busy is left alone where it does not say so itself."""
LEAVING_RETRY_S = 30.0
"""A vLLM server that is shutting down says so with a 500 while its /health is still 200."""
_FAULTS: tuple[tuple[type[ServerFault], tuple[str, ...]], ...] = (
    (EngineDead, ("enginecore encountered an issue", "enginedeaderror", "engine loop is not running")),
    (OutOfMemory, ("out of memory", "outofmemory", "unable to allocate")),
)
"""What vLLM, PyTorch and NumPy say, in lower case, in a 5xx or in an event of a stream."""
_LEAVING = "cannot schedule new futures after shutdown"
_CONTEXT = re.compile(r"maximum context length (?:is |\()(\d+)|maximum model length of (\d+)", re.IGNORECASE)
"""How vLLM and OpenAI say in a 400 that a prompt is too long, and what would not be."""
_TOO_LONG = "context_length_exceeded"
_FLAG = re.compile(
    r"--(?:enable|tool|limit-mm|max-logprobs|trust-request|reasoning)[a-z-]*"
    r"|greater than max allowed: \d|LoRA is not enabled"
)
"""How vLLM says in a 4xx that the server would have to be started otherwise: it names the flag, or the limit set by one."""
_NO_API = re.compile(r"The model does not support \w[\w ]* API")
_MESSAGE_LIMIT = 2000
_NO_REASON = "no reason given"
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")

_OF_ACCOUNT = {
    "invalid_api_key",
    "insufficient_quota",
    "billing_not_active",
    "billing_hard_limit_reached",
    "account_deactivated",
    "access_terminated",
    "organization_restricted",
}
"""Codes and types that speak of our account, whatever the status: OpenAI sends some with 429, others with 400."""
_BAD_KEY = ("incorrect api key", "invalid api key", "api key not valid")
"""How a 400 of xAI and of Gemini begins that means a 401."""
_NO_MODEL = {"model_not_found", "DeploymentNotFound", "NOT_FOUND", "NotFoundError"}
_TOO_LARGE = "request too large for"
"""How OpenAI (429) and Groq (413) begin to say that one call is more than a whole minute of our rate."""


class _Told(Struct, frozen=True):
    message: str = _NO_REASON
    param: str | None = None
    code: str | None = None
    kind: str | None = None
    moderated: bool = False


def refusal(status: int, headers: dict[bytes, bytes], body: bytes) -> AttemptFailed | CallRejected:
    """The exception for a reply with a status other than 200."""
    told, pause_s = _told(body), asked_pause_s(headers)
    message = told.message
    ours = _of_our_account(status, told, pause_s)
    if ours is not None:
        return ours
    if status in (498, 503):  # 498 is Groq's, for flex work that it has no room for
        return Overloaded(message, status, pause_s or BUSY_RETRY_S)
    # A 404 is the client's own where the route is unknown, and the configuration's where the model is.
    if status in (403, 404) and (told.param == "model" or _NO_MODEL & {told.code, told.kind}):
        return ModelMissing(_answered(status, told), status)
    if status == 405 or status < 400 or (status == 501 and _NO_API.search(message)):
        return Misconfigured(_answered(status, told), status)
    if status in (408, 425) or status >= 500:
        return fault(message, status)
    return rejection(CallRejected(status, message, told.param, told.code))


def fault(message: str, status: int = 500, before: str = "") -> Refused:
    """The failure that a server's error of its own is, by its words; `before` is put in front of them."""
    if _LEAVING in message:
        return Leaving("the worker is shutting down", status, LEAVING_RETRY_S)
    said = message.lower()
    kind = next((kind for kind, words in _FAULTS if any(each in said for each in words)), ServerFault)
    return kind(before + message, status)


def rejection(rejected: CallRejected) -> AttemptFailed | CallRejected:
    """What an endpoint says of the call, unless it is only that endpoint that cannot take it."""
    context = _CONTEXT.search(rejected.message)
    if context or rejected.code == _TOO_LONG:
        return ContextTooShort(rejected, int(context[1] or context[2]) if context else None)
    return Unable(rejected) if _FLAG.search(rejected.message) else rejected


def _of_our_account(status: int, told: _Told, pause_s: float | None) -> AttemptFailed | None:
    """The exception where it is our key, our rate or our money there that is refused, not this call."""
    said = told.message.lower()
    if status in (413, 429) and said.startswith(_TOO_LARGE):
        return CallTooLarge(told.message, 429)
    if status in (400, 403, 429) and _OF_ACCOUNT & {told.code, told.kind}:
        return KeyRefused(_answered(status, told), status)
    if status == 429 or (status == 402 and pause_s is not None):
        return RateLimited(told.message, status, pause_s or BUSY_RETRY_S)
    of_key = status in (401, 402, 412) or (status == 400 and said.startswith(_BAD_KEY))
    if of_key or (status == 403 and not told.moderated and told.code not in _NO_MODEL):
        return KeyRefused(_answered(status, told), status)
    return None


def _answered(status: int, told: _Told) -> str:
    return f"the endpoint answered {status}: {told.message}"


def _told(body: bytes) -> _Told:
    """What an error says, in any of the shapes that model servers and providers have, or as plain text."""
    try:
        reply: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Told(body[:_MESSAGE_LIMIT].decode(errors="replace").strip() or _NO_REASON)
    if isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]  # Gemini
    if not isinstance(reply, dict):
        return _Told(_message(reply))
    errors = reply.get("errors")
    error = reply.get("error", reply)
    if isinstance(errors, list) and errors and "error" not in reply:
        error = errors[0]  # Cloudflare
    if not isinstance(error, dict):
        return _Told(_message(error), None, _code(reply.get("code")))
    metadata = error.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}  # OpenRouter
    param, kind = (
        value if isinstance(value := error.get(field), str) else None for field in ("param", "type")
    )
    message, place = _in_words(error.get("message", error.get("detail", error.get("fault"))))
    if metadata.get("raw"):
        message = f"{message}: {_message(metadata['raw'])}"[:_MESSAGE_LIMIT]
    moderated = "reasons" in metadata or "flagged_input" in metadata
    return _Told(message, param or place, _code(error.get("code")), kind, moderated)


def _in_words(said: object) -> tuple[str, str | None]:
    """A message in words, and the field that it speaks of: FastAPI's is a list of findings, each with its place."""
    if isinstance(said, dict):
        said = said.get("faultstring", said.get("detail", said))  # Fireworks, Mistral
    if not (
        isinstance(said, list) and said and all(isinstance(each, dict) and "msg" in each for each in said)
    ):
        return _message(said), None
    places = [_place(each.get("loc")) for each in said]
    found = [
        f"{place}: {each['msg']}" if place else str(each["msg"])
        for place, each in zip(places, said, strict=True)
    ]
    return "; ".join(found)[:_MESSAGE_LIMIT], places[0] or None


def _place(loc: object) -> str:
    parts = loc if isinstance(loc, list) else [] if loc is None else [loc]
    return ".".join(str(part) for part in parts if part != "body")


def _code(code: object) -> str | None:
    """A code that is a word. vLLM's and OpenRouter's is the HTTP status once more, Azure's may be it as text."""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None


def _message(value: object) -> str:
    return str(value)[:_MESSAGE_LIMIT] if value else _NO_REASON
