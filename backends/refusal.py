"""What a reply that is no success means: one table for every status.

A worker's 400 is the client's own mistake and goes back to it. Everything else says something of the worker, and
another one may do better.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from backends.base import AttemptFailed, CallRejected, Misconfigured, Overloaded, ServerFault

BUSY_RETRY_S = 1.0
"""How long an endpoint that is busy is left alone where it does not say so itself."""
LEAVING_RETRY_S = 30.0
"""A vLLM server that is shutting down says so with a 500 while its /health is still 200."""
_LEAVING = "cannot schedule new futures after shutdown"
_MESSAGE_LIMIT = 2000
_NO_REASON = "no reason given"
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


def refusal(status: int, headers: dict[bytes, bytes], body: bytes) -> AttemptFailed | CallRejected:
    """The exception for a reply with a status other than 200."""
    message, param, code, kind = _error_fields(body)
    if status in (429, 503):
        return Overloaded(message, status, _retry_after_s(headers) or BUSY_RETRY_S)
    if status in (408, 425) or status >= 500:
        if _LEAVING in message:
            return Overloaded("the worker is shutting down", status, LEAVING_RETRY_S)
        return ServerFault(message, status)
    # A 404 is the client's own where the route is unknown, and the configuration's where the model is.
    no_model = status == 404 and (param == "model" or code == "model_not_found" or kind == "NotFoundError")
    if status in (401, 402, 403, 405) or status < 400 or no_model:
        return Misconfigured(f"the endpoint answered {status}: {message}", status)
    return CallRejected(status, message, param, code)


def _error_fields(body: bytes) -> tuple[str, str | None, str | None, str | None]:
    """Message, param, code and type of an error in OpenAI's, vLLM's older or FastAPI's shape, or of plain text."""
    try:
        reply: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:_MESSAGE_LIMIT].decode(errors="replace").strip() or _NO_REASON, None, None, None
    error = reply.get("error", reply) if isinstance(reply, dict) else reply
    if not isinstance(error, dict):
        return _message(error), None, None, None
    # vLLM's code is the HTTP status once more, a number.
    param, code, kind = (
        value if isinstance(value := error.get(field), str) else None for field in ("param", "code", "type")
    )
    return _message(error.get("message", error.get("detail"))), param, code, kind


def _message(value: object) -> str:
    return str(value)[:_MESSAGE_LIMIT] if value else _NO_REASON


def _retry_after_s(headers: dict[bytes, bytes]) -> float | None:
    """Seconds; the form with a date is not used by any model server."""
    text = headers.get(b"retry-after", b"").strip()
    return float(text) if _SECONDS.fullmatch(text) else None
