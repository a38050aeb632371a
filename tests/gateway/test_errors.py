"""Every error that a client can get is in the table, and each makes the official SDK raise its own exception."""

from __future__ import annotations

import ast
import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import (
    AttemptFailed,
    CallRejected,
    CallTimeout,
    ContextTooShort,
    Overloaded,
    Refused,
    Unable,
    Unsupported,
)
from gateway.errors import ERRORS, ApiError, from_failure, from_rejection
from routing.failure import FAILURES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ROOT = Path(__file__).parents[2]
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for package in ("gateway", "backends")
    for path in sorted((ROOT / package).rglob("*.py"))
}
RAISED_BY_SDK = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    405: openai.APIStatusError,
    409: openai.ConflictError,
    413: openai.APIStatusError,
    415: openai.APIStatusError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    431: openai.APIStatusError,
    500: openai.InternalServerError,
    502: openai.InternalServerError,
    503: openai.InternalServerError,
    504: openai.InternalServerError,
}


def failures(base: type[AttemptFailed] = AttemptFailed) -> Iterator[type[AttemptFailed]]:
    yield base
    for kind in base.__subclasses__():
        yield from failures(kind)


def codes_given() -> Iterator[tuple[str, ast.expr]]:
    """Where in the source an ApiError is made, and the code it is made with."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "ApiError":
                yield path, node.args[0]


def test_every_code_in_the_source_is_in_the_table():
    written = {code.value for _, code in codes_given() if isinstance(code, ast.Constant)}
    assert len(written) > 10
    assert written <= ERRORS.keys()
    assert {row.code for row in FAILURES.values()} <= ERRORS.keys()


def test_codes_that_are_worked_out_are_so_in_the_places_that_other_tests_know():
    worked_out = {
        f"{path}: {ast.unparse(code)}" for path, code in codes_given() if not isinstance(code, ast.Constant)
    }
    assert worked_out == {
        "gateway/errors.py: code",  # of the failures' tree, and an endpoint's own, below
        "gateway/malformed.py: code",  # tests/gateway/test_openai.py
        "gateway/control.py: code",  # tests/e2e/test_administration.py
    }


def test_every_code_in_the_table_can_come_up():
    keys = {
        id(key)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key in node.keys
    }
    used = {
        node.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in keys
    }
    assert ERRORS.keys() - used - {row.code for row in FAILURES.values()} == set()


@asynccontextmanager
async def answering_with(errors: Mapping[str, ApiError]) -> AsyncIterator[str]:
    """A server that answers with the error named by the first part of the path."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        await reader.readexactly(int(fields[b"content-length"]))
        error = errors[head.split()[1].decode().split("/")[1]]
        body = error.body()
        headers = [*error.headers(), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        writer.write(b"HTTP/1.1 %d Error\r\n%b\r\n%b" % (error.status, lines, body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def raised(errors: Mapping[str, ApiError]) -> dict[str, openai.APIStatusError]:
    """What the official SDK raises for each."""
    found = {}
    async with (
        answering_with(errors) as url,
        openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0) as client,
    ):
        for name in errors:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.with_options(base_url=f"{url}/{name}").chat.completions.create(
                    model="m", messages=[]
                )
            found[name] = caught.value
    return found


async def test_every_error_makes_the_sdk_raise_its_own_exception_with_code_type_param_and_message():
    errors = {code: ApiError(code, f'what "{code}" says \u2028', param="messages") for code in ERRORS}
    for code, error in (await raised(errors)).items():
        kind = ERRORS[code]
        assert type(error) is RAISED_BY_SDK[kind.status], code
        assert (error.status_code, error.code, error.type, error.param) == (
            kind.status,
            code,
            kind.type,
            "messages",
        )
        assert error.body == {
            "message": f'what "{code}" says \u2028',
            "type": kind.type,
            "param": "messages",
            "code": code,
        }


async def test_an_endpoint_s_own_rejection_makes_the_sdk_raise_what_it_would_have_raised_there():
    rejections = {
        "plain": CallRejected(400, "max_tokens is too large", "max_tokens"),
        "coded": CallRejected(400, "too long", "messages", "context_length_exceeded"),
        "bare": CallRejected(422, "no reason given"),
        "route": CallRejected(404, "Not Found"),
        "twice": CallRejected(409, "conflict"),
        "large": CallRejected(413, "too large"),
    }
    found = await raised({name: from_rejection(rejected) for name, rejected in rejections.items()})
    for name, rejected in rejections.items():
        error = found[name]
        assert type(error) is RAISED_BY_SDK[rejected.status]
        assert (error.status_code, error.param) == (rejected.status, rejected.param)
        assert (error.code, error.type) == (rejected.code or "invalid_request", "invalid_request_error")
        assert error.body["message"] == rejected.message


async def test_a_busy_pool_tells_the_sdk_when_to_come_back():
    error = from_failure(Overloaded("queue is full", 429, 2.5), attempts=2)
    found = (await raised({"busy": error}))["busy"]
    assert type(found) is openai.RateLimitError
    assert found.code == "upstream_rate_limited"
    assert found.response.headers["retry-after"] == "3"
    assert found.body["message"] == "2 endpoints were tried; the last: queue is full"


@pytest.mark.parametrize("kind", [kind for kind in failures() if not issubclass(kind, Unable)])
def test_every_failure_of_an_attempt_becomes_an_error_that_says_what_was_tried(kind: type[AttemptFailed]):
    failure = kind() if kind is CallTimeout else kind("why")
    error = from_failure(failure, attempts=1)
    assert error.code == kind.sort.code
    assert error.status == ERRORS[kind.sort.code].status
    # What no endpoint can be asked is the call's fault; all else is ours or theirs.
    assert (error.status < 500) == (kind is Unsupported)
    assert error.message == f"1 endpoint was tried; the last: {failure}"
    assert (b"retry-after" in dict(error.headers())) == (error.status == 503)
    assert isinstance(failure, Refused) == hasattr(failure, "retry_after_s")


def test_what_all_endpoints_say_of_a_call_is_what_the_client_gets():
    rejected = CallRejected(400, "too long", "input_tokens")
    error = from_failure(ContextTooShort(rejected, 2048), attempts=2)
    assert (error.status, error.code, error.message, error.param) == (
        400,
        "invalid_request",
        "too long",
        "input_tokens",
    )


@patiently
@given(st.floats(0, 1e9))
def test_retry_after_is_whole_seconds_rounded_up_and_never_none_at_all(seconds: float):
    headers = dict(ApiError("no_endpoint_available", "later", retry_after_s=seconds).headers())
    text = headers[b"retry-after"].decode()
    assert text.isdecimal()
    assert max(seconds, 1) <= int(text) < max(seconds + 1, 2)


def test_headers_of_an_error_s_own_come_with_its_type():
    error = ApiError("method_not_allowed", "use POST", headers=[(b"allow", b"POST")])
    assert error.headers() == [(b"content-type", b"application/json"), (b"allow", b"POST")]


@patiently
@given(st.text(), st.none() | st.text())
def test_an_error_is_valid_json_in_openai_s_shape_whatever_it_says(message: str, param: str | None):
    body = json.loads(ApiError("invalid_value", message, param=param).body())
    assert body == {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": "invalid_value",
        }
    }
