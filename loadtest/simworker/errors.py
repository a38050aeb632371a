"""The errors a worker answers with, in vLLM's words."""

from __future__ import annotations

import msgspec
from msgspec import Struct

NOT_FOUND = b'{"detail":"Not Found"}'
METHOD_NOT_ALLOWED = b'{"detail":"Method Not Allowed"}'
ENGINE_DIED = (
    b'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", '
    b'"type": "InternalServerError", "param": null, "code": 500}}\n\n'
)


class ErrorDetail(Struct):
    message: str
    type: str
    param: str | None
    code: int


class ErrorReply(Struct):
    error: ErrorDetail


class Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(
        self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, kind, param)


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    return msgspec.json.encode(ErrorReply(ErrorDetail(message, kind, param, status)))


def busy() -> Refused:
    return Refused(
        503,
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
        "Service Unavailable",
    )


def leaving() -> Refused:
    return Refused(500, "cannot schedule new futures after shutdown", "InternalServerError")


def unknown_model(model: str, served: str) -> Refused:
    message = f"The model `{model}` does not exist. Valid aliases: {served}."
    return Refused(404, message, "NotFoundError", "model")


def prompt_too_long(tokens: int, most: int) -> Refused:
    return Refused(
        400,
        f"This model's maximum context length is {most} tokens. However, your prompt contains {tokens} input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        f"(parameter=input_tokens, value={tokens})",
        param="input_tokens",
    )


def bad_value(param: str, value: object, message: str) -> Refused:
    return Refused(400, f"{message} (parameter={param}, value={value})", param=param)
