import json

import pytest

from backends.base import AttemptFailed, CallRejected, Misconfigured, Overloaded, ServerFault
from backends.refusal import BUSY_RETRY_S, LEAVING_RETRY_S, refusal


def vllm(message: str, code: int, kind: str = "BadRequestError", param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (201, Misconfigured), (204, Misconfigured), (301, Misconfigured), (302, Misconfigured), (304, Misconfigured),
        (400, CallRejected), (401, Misconfigured), (402, Misconfigured), (403, Misconfigured), (404, CallRejected),
        (405, Misconfigured), (408, ServerFault), (409, CallRejected), (413, CallRejected), (415, CallRejected),
        (422, CallRejected), (425, ServerFault), (429, Overloaded), (500, ServerFault), (501, ServerFault),
        (502, ServerFault), (503, Overloaded), (504, ServerFault), (529, ServerFault), (599, ServerFault),
    ],
)  # fmt: skip
def test_each_status_says_whose_fault_it_is(status: int, expected: type[Exception]):
    failure = refusal(status, {}, vllm("why", status))
    assert type(failure) is expected
    assert failure.status == status
    assert "why" in str(failure)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"7", 7.0), (b" 7 ", 7.0), (b"0", BUSY_RETRY_S), (b"", BUSY_RETRY_S), (b"soon", BUSY_RETRY_S), (b"-5", BUSY_RETRY_S),
     (b"Wed, 21 Oct 2015 07:28:00 GMT", BUSY_RETRY_S), (b"9" * 400, BUSY_RETRY_S), (b"1.5", 1.5), (b"inf", BUSY_RETRY_S), (b"nan", BUSY_RETRY_S)],
)  # fmt: skip
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_endpoint_says_when_to_come_back(status: int, value: bytes, seconds: float):
    failure = refusal(status, {b"retry-after": value}, b"")
    assert isinstance(failure, Overloaded)
    assert failure.retry_after_s == seconds


def test_a_busy_endpoint_that_does_not_say_when_is_left_alone_for_a_moment():
    body = vllm("The engine is currently busy and cannot accept new requests.", 503, "Service Unavailable")
    assert refusal(503, {}, body).retry_after_s == BUSY_RETRY_S


def test_a_worker_that_is_shutting_down_is_left_alone_for_longer():
    failure = refusal(500, {}, vllm("cannot schedule new futures after shutdown", 500))
    assert isinstance(failure, Overloaded)
    assert failure.retry_after_s == LEAVING_RETRY_S


@pytest.mark.parametrize(
    "body",
    [
        vllm("The model `x` does not exist.", 404, "NotFoundError", "model"),
        b'{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","param":null,"code":404}',
        b'{"error":{"message":"The model `x` does not exist","type":"invalid_request_error","param":null,"code":"model_not_found"}}',
    ],
)
def test_an_endpoint_without_its_model_is_misconfigured(body: bytes):
    assert isinstance(refusal(404, {}, body), Misconfigured)


def test_an_unknown_route_is_the_client_s_own_404():
    failure = refusal(404, {}, b'{"detail":"Not Found"}')
    assert isinstance(failure, CallRejected)
    assert (failure.status, failure.message) == (404, "Not Found")


def test_the_client_s_mistake_comes_back_with_message_and_param_but_not_vllm_s_code():
    failure = refusal(400, {}, vllm("max_tokens must be at least 1", 400, param="max_tokens"))
    assert isinstance(failure, CallRejected)
    assert (failure.message, failure.param, failure.code) == (
        "max_tokens must be at least 1",
        "max_tokens",
        None,
    )
    body = b'{"error":{"message":"too long","param":"messages","code":"context_length_exceeded"}}'
    assert refusal(400, {}, body).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b'{"object":"error","message":"older vLLM","type":"BadRequestError","param":null,"code":400}',
            "older vLLM",
        ),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body"],"msg":"Field required"}]}', "Field required"),
        (b'{"error":"just text"}', "just text"),
        (b'{"error":{"message":["odd"]}}', "odd"),
        (b'{"error":{}}', "no reason given"),
        (b'{"error":null}', "no reason given"),
        (b'{"message":null}', "no reason given"),
        (b"{}", "no reason given"),
        (b"null", "no reason given"),
        (b"[]", "no reason given"),
        (b'""', "no reason given"),
        (b'"text"', "text"),
        (b"Internal Server Error", "Internal Server Error"),
        (b"<html><h1>502 Bad Gateway", "502 Bad Gateway"),
        (b"  \n", "no reason given"),
        (b"", "no reason given"),
        (b"\xff\xfe", "\ufffd"),
        (b'{"error":{"message":"\xff"}}', "\ufffd"),
        (b"[" * 100_000, "[[["),
    ],
)
@pytest.mark.parametrize("status", [400, 500])
def test_errors_of_every_shape_have_a_message(status: int, body: bytes, text: str):
    failure = refusal(status, {}, body)
    assert isinstance(failure, (AttemptFailed, CallRejected))
    assert text in str(failure)
    assert len(str(failure)) <= 2000


def test_a_long_message_is_cut():
    assert len(str(refusal(400, {}, vllm("x" * 100_000, 400)))) == 2000
    assert len(str(refusal(500, {}, b"x" * 100_000))) == 2000
