"""Every error that a client can get, in one table, and its shape on the wire.

The shape is OpenAI's everywhere, so that each SDK raises its own typed exception: the status decides which, and `code`
says what happened to people and programs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from backends.base import AttemptFailed, CallRejected, Refused, Unable
from routing.misses import UNKNOWN_WAIT_S, shortfalls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.policy import Policy
    from routing.decision import Decision


_MOST_SHOWN = 20
"""Endpoints in a message: with their names and figures, some kilobytes."""


class ErrorKind(Struct, frozen=True):
    status: int
    type: str
    meaning: str


_REQUEST = "invalid_request_error"
_UPSTREAM = "upstream_error"

ERRORS: dict[str, ErrorKind] = {
    "invalid_api_key": ErrorKind(401, "authentication_error", "No key, or one that is unknown or revoked."),
    "invalid_json": ErrorKind(400, _REQUEST, "The body is no JSON; the message says where."),
    "missing_required_parameter": ErrorKind(400, _REQUEST, "A field is missing; `param` names it."),
    "invalid_type": ErrorKind(400, _REQUEST, "A field has the wrong type; `param` names it."),
    "invalid_value": ErrorKind(400, _REQUEST, "A field has a value that makes no sense; `param` names it."),
    "invalid_request": ErrorKind(400, _REQUEST, "The endpoint rejected the call; the message is its own."),
    "upstream_unsupported": ErrorKind(
        400, _REQUEST, "The endpoint cannot be asked this; the message names what it does not take."
    ),
    "invalid_http": ErrorKind(400, _REQUEST, "What came is no HTTP request; the connection is closed."),
    "demands_not_met": ErrorKind(
        400,
        _REQUEST,
        "No endpoint can ever meet what the call insists on; says by how much each misses it, the nearest first.",
    ),
    "cors_not_allowed": ErrorKind(
        400, _REQUEST, "A browser asked whether a page may call, and it may not; see `cors.origins`."
    ),
    "admin_key_required": ErrorKind(
        403,
        "permission_error",
        "The key is good for calls only; administration takes an admin key or `auth.master_key`.",
    ),
    "admin_role_required": ErrorKind(403, "permission_error", "The admin key may look, and change nothing."),
    "cross_site": ErrorKind(
        403, "permission_error", "With the console's cookie, but not from the console's own pages."
    ),
    "model_not_allowed": ErrorKind(
        403, "permission_error", "The key's policy, or its tenant's, does not allow the model."
    ),
    "tier_not_allowed": ErrorKind(403, "permission_error", "Nor does it allow the service tier."),
    "api_not_allowed": ErrorKind(403, "permission_error", "Nor does it allow the API."),
    "network_not_allowed": ErrorKind(
        403, "permission_error", "Nor does it allow calls from that network address."
    ),
    "tenant_suspended": ErrorKind(
        403, "permission_error", "The key's tenant, or its project, has been suspended."
    ),
    "explain_not_allowed": ErrorKind(
        403, "permission_error", "The key's tenant may not see plans; see `auth.explain_to`."
    ),
    "unknown_url": ErrorKind(404, _REQUEST, "There is no such path."),
    "model_not_found": ErrorKind(
        404, _REQUEST, "There is no such model; names those that are spelled alike."
    ),
    "node_not_found": ErrorKind(404, _REQUEST, "No such node is registered; it may register again."),
    "subject_not_found": ErrorKind(404, _REQUEST, "There is no such tenant, project, key, node or call."),
    "method_not_allowed": ErrorKind(405, _REQUEST, "The path does not take this method; see `allow`."),
    "node_conflict": ErrorKind(409, _REQUEST, "Another endpoint of the model has the node's name."),
    "idempotency_conflict": ErrorKind(409, _REQUEST, "The idempotency key has been used for something else."),
    "billing_refused": ErrorKind(
        409,
        _REQUEST,
        "The ledger does not allow it: a call is refunded already, say, or a month is not over.",
    ),
    "name_taken": ErrorKind(409, _REQUEST, "There is a tenant or project of that name already."),
    "request_too_large": ErrorKind(413, _REQUEST, "The body exceeds `limits.body_bytes`."),
    "unsupported_content_encoding": ErrorKind(415, _REQUEST, "The body is compressed; send it plain."),
    "headers_too_large": ErrorKind(431, _REQUEST, "The headers exceed `limits.header_bytes`."),
    "poisonous_call": ErrorKind(
        422,
        _REQUEST,
        "Workers crash under this call; it is not tried at more of them, nor if repeated at once.",
    ),
    "upstream_rate_limited": ErrorKind(
        429, "rate_limit_error", "The endpoints limit our rate; `retry-after` says when to come back."
    ),
    "rate_limit_exceeded": ErrorKind(
        429,
        "rate_limit_error",
        "A limit of the key, its project or its tenant on requests, tokens or calls at once; the type says `requests` or `tokens`.",
    ),
    "insufficient_quota": ErrorKind(
        429,
        "insufficient_quota",
        "A budget of one of them is spent, or too little of it is left for what the call may cost.",
    ),
    "budget_held": ErrorKind(
        429, "rate_limit_error", "Calls under way may need what is left of a budget; see `retry-after`."
    ),
    "too_many_logins": ErrorKind(
        429,
        "rate_limit_error",
        "Too many logins at the console from that address have failed; see `retry-after`.",
    ),
    "queue_full_for_tenant": ErrorKind(
        429, "rate_limit_error", "The tenant has `queue.calls_per_tenant` calls waiting already."
    ),
    "internal_error": ErrorKind(500, "server_error", "A defect of the gateway; it is in its log."),
    "upstream_failed": ErrorKind(502, _UPSTREAM, "The endpoint failed in a way of its own."),
    "upstream_connect_failed": ErrorKind(502, _UPSTREAM, "No connection to the endpoint could be made."),
    "upstream_tls_failed": ErrorKind(502, _UPSTREAM, "The endpoint's certificate or TLS handshake is bad."),
    "upstream_broken": ErrorKind(502, _UPSTREAM, "The endpoint closed the connection in its reply."),
    "upstream_truncated": ErrorKind(502, _UPSTREAM, "The stream ended before every choice had finished."),
    "upstream_malformed": ErrorKind(502, _UPSTREAM, "The endpoint's reply is no HTTP, JSON or event stream."),
    "upstream_oversized": ErrorKind(
        502, _UPSTREAM, "The reply exceeds `limits.reply_bytes` or `event_bytes`."
    ),
    "upstream_misconfigured": ErrorKind(502, _UPSTREAM, "The endpoint does not take our key or our model."),
    "upstream_error": ErrorKind(502, _UPSTREAM, "The endpoint answered 5xx or an error event in its stream."),
    "upstream_busy": ErrorKind(
        503, "service_unavailable", "All endpoints are busy; `retry-after` says when to come back."
    ),
    "no_endpoint_available": ErrorKind(
        503, "service_unavailable", "No endpoint can serve now; see `retry-after`."
    ),
    "limits_unavailable": ErrorKind(
        503,
        "service_unavailable",
        "Limits cannot be looked up, and `limits.when_store_is_away` is `closed`.",
    ),
    "overloaded": ErrorKind(
        503,
        "service_unavailable",
        "The queue is full, or the call has waited in it as long as it may; see `retry-after`.",
    ),
    "database_away": ErrorKind(
        503, "service_unavailable", "The database cannot be asked now; calls go on without it."
    ),
    "shutting_down": ErrorKind(
        503, "service_unavailable", "The gateway is shutting down and the call took too long."
    ),
    "upstream_connect_timeout": ErrorKind(504, _UPSTREAM, "No connection within `timeouts.connect_s`."),
    "upstream_timeout": ErrorKind(504, _UPSTREAM, "The endpoint was late."),
    "upstream_first_byte_timeout": ErrorKind(504, _UPSTREAM, "No reply within `timeouts.first_byte_s`."),
    "upstream_silence_timeout": ErrorKind(504, _UPSTREAM, "The reply stopped for `timeouts.silence_s`."),
    "call_timeout": ErrorKind(504, _UPSTREAM, "The call took longer than `timeouts.total_s`."),
}
"""By code. The README's table is made of it."""


class _Error(Struct):
    message: str
    type: str
    param: str | None
    code: str


class _Envelope(Struct):
    error: _Error


class ApiError(Exception):
    """An error on its way to the client."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        kind: str | None = None,
    ) -> None:
        """`kind` is its type on the wire, where that is not its code's."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.status = status or ERRORS[code].status
        self.retry_after_s = retry_after_s
        self.extra_headers = headers
        self.kind = kind

    def body(self) -> bytes:
        kind = ERRORS.get(self.code)
        # An endpoint's own error may come with any code, even with one of ours.
        kind_type = self.kind or (kind.type if kind is not None and kind.status == self.status else _REQUEST)
        return msgspec.json.encode(_Envelope(_Error(self.message, kind_type, self.param, self.code)))

    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"content-type", b"application/json"), *self.extra_headers]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after_s))))
        return headers

    def header_lines(self) -> bytes:
        return b"".join(b"%b: %b\r\n" % header for header in self.headers())


def from_failure(failure: AttemptFailed, attempts: int) -> ApiError:
    """What the client is told when the last attempt has failed too."""
    if isinstance(failure, Unable):
        return from_rejection(failure.rejected)
    limited = isinstance(failure, Refused) and failure.status == 429
    code = "upstream_rate_limited" if limited else failure.code
    tried = "1 endpoint was" if attempts == 1 else f"{attempts} endpoints were"
    retry_after_s = failure.retry_after_s if isinstance(failure, Refused) else None
    if ERRORS[code].status in (429, 503) and retry_after_s is None:
        retry_after_s = 1.0
    return ApiError(code, f"{tried} tried; the last: {failure}", retry_after_s=retry_after_s)


def unserved(decisions: Sequence[Decision], policy: Policy | None = None) -> ApiError:
    """Why no endpoint of any of the models can take a call: for now, or ever. It says what the key's policy has asked for."""
    names = " or ".join(dict.fromkeys(decision.call.model for decision in decisions))
    found = [shortfall for decision in decisions for shortfall in shortfalls(decision)]
    if not found:
        message = f"No endpoint of {names} is there right now."
        return ApiError("no_endpoint_available", message, retry_after_s=UNKNOWN_WAIT_S)
    waits_s = [each.retry_after_s for each in found if each.retry_after_s is not None]
    if waits_s:
        found = [each for each in found if each.retry_after_s is not None]
    shown = [
        f"{each.endpoint.name}: {', and '.join(each.reasons) or 'ready'}" for each in found[:_MOST_SHOWN]
    ]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more")
    reasons = "; ".join(shown)
    if policy is not None:
        reasons += f". This key is held to: {policy.described()}"
    if not waits_s:
        return ApiError("demands_not_met", f"No endpoint of {names} can serve this call. {reasons}")
    message = f"No endpoint of {names} can serve this call right now. {reasons}"
    return ApiError("no_endpoint_available", message, retry_after_s=min(waits_s))


def shutting_down() -> ApiError:
    """The server has waited long enough for this call."""
    return ApiError("shutting_down", "the gateway is shutting down", retry_after_s=1.0)


def from_rejection(rejected: CallRejected) -> ApiError:
    """An endpoint's own 4xx, in our shape: its message, and its status so that the SDK raises the same exception."""
    code = rejected.code or "invalid_request"
    return ApiError(code, rejected.message, param=rejected.param, status=rejected.status)


def outcome_of(error: BaseException | None) -> str:
    match error:
        case None:
            return "ok"
        case ApiError():
            # An endpoint's own code could be anything, and an outcome is a metric's label.
            return error.code if error.code in ERRORS else "invalid_request"
        case Exception():
            return "internal_error"
    return "client_left"
