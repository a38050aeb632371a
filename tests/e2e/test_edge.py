"""What goes wrong between an SDK and the gateway: the exception that its user gets, and the shape on the wire."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import openai
import pytest
import pytest_asyncio
from openai import Omit
from pool import TENANT, Gateway, gateway, until

from gateway.subjects import Subjects
from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = WorkerSpec(decode_s_per_token=0, max_model_len=100)
BODY_LIMIT = 100_000
HELLO: dict[str, Any] = {
    "model": "llama",
    "messages": [{"role": "user", "content": "High water?"}],
    "max_tokens": 2,
}
CHAT = "/v1/chat/completions"
MADE_ID = re.compile(r"req_[0-9a-f]{31}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[SimWorker]:
    async with SimWorker(SMALL) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(worker: SimWorker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    limits = {"body_bytes": BODY_LIMIT}
    async with gateway(tmp_path_factory.mktemp("gateway"), worker, limits=limits) as running:
        yield running


# The exceptions of the SDK


class Raised(NamedTuple):
    kind: type[openai.APIStatusError]
    code: str
    param: str | None
    words: str


BAD = openai.BadRequestError
MISSING, TYPE, VALUE = "missing_required_parameter", "invalid_type", "invalid_value"
EXCEPTIONS: dict[str, tuple[dict[str, Any], Raised]] = {
    "unknown model": ({"model": "llama-smal"}, Raised(openai.NotFoundError, "model_not_found", "model", "mean llama-small or llama")),
    "huge model": ({"model": "x" * 50_000}, Raised(openai.NotFoundError, "model_not_found", "model", "x{200}' does not")),
    "no model": ({"model": Omit()}, Raised(BAD, MISSING, "model", "model is missing")),
    "null for a model": ({"model": None}, Raised(BAD, TYPE, "model", "expected `str`, got `null`")),
    "text for messages": ({"messages": "hi"}, Raised(BAD, TYPE, "messages", "expected `array`, got `str`")),
    "text for a number": ({"temperature": "hot"}, Raised(BAD, TYPE, "temperature", "got `str`")),
    "fraction for a count": ({"max_tokens": 1.5}, Raised(BAD, TYPE, "max_tokens", "got `float`")),
    "number for a text": ({"stop": ["a", 1]}, Raised(BAD, TYPE, "stop[1]", "expected `str`, got `int`")),
    "unknown tier": ({"service_tier": "gold"}, Raised(BAD, VALUE, "service_tier", "not 'gold'")),
    # In the worker's own words, which name what only it knows.
    "long prompt": (
        {"messages": [{"role": "user", "content": "tide " * 200}]},
        Raised(BAD, "invalid_request", "input_tokens", "maximum context length is 100 tokens"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("changes", "raised"), EXCEPTIONS.values(), ids=EXCEPTIONS)
async def test_the_sdk_raises_what_its_users_expect(
    gw: Gateway, changes: dict[str, Any], raised: Raised, *, stream: bool
):
    with pytest.raises(raised.kind) as caught:
        await gw.client().chat.completions.create(**HELLO | {"stream": stream}, extra_body=changes)
    error = caught.value
    assert (error.code, error.param, error.type) == (raised.code, raised.param, "invalid_request_error")
    assert re.search(raised.words, error.message)
    assert error.request_id == error.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (409, openai.ConflictError),
        (413, openai.APIStatusError),
        (422, openai.UnprocessableEntityError),
    ],
)
async def test_a_workers_own_4xx_comes_with_its_status_and_message(
    gw: Gateway, worker: SimWorker, status: int, kind: type[openai.APIStatusError]
):
    worker.order(Fault(kind="status", status=status, count=1))
    with pytest.raises(kind, match="A fault was ordered") as raised:
        await gw.client().chat.completions.create(**HELLO)
    assert (raised.value.status_code, raised.value.code) == (status, "invalid_request")


@pytest.mark.parametrize("authorization", [Omit(), "Bearer sk-wrong", "Basic a2V5", "Bearer", "key"])
async def test_without_a_good_key_the_sdk_raises_authentication_error(gw: Gateway, authorization: Any):
    client, headers = gw.client(), {"Authorization": authorization}
    for call in (client.models.list, partial(client.chat.completions.create, **HELLO)):
        with pytest.raises(openai.AuthenticationError) as raised:
            await call(extra_headers=headers)
        assert (raised.value.code, raised.value.type) == ("invalid_api_key", "authentication_error")
        assert raised.value.response.headers["www-authenticate"] == "Bearer"


async def test_a_revoked_key_raises_authentication_error_before_long(tmp_path: Path):
    async with SimWorker(SMALL) as worker, gateway(tmp_path, worker) as gw:
        client = gw.client()
        await client.models.list()
        [key] = Subjects(gw.store).list_keys(TENANT)
        Subjects(gw.store).revoke_key(key.id)

        async def refused() -> bool:
            try:
                await client.models.list()
            except openai.AuthenticationError:
                return True
            return False

        await until(refused)


async def test_an_api_that_there_is_not_raises_not_found(gw: Gateway):
    with pytest.raises(openai.NotFoundError, match=r"there is no POST /v1/responses") as raised:
        await gw.client().responses.create(model="llama", input="High water?")
    assert raised.value.code == "unknown_url"


@pytest.mark.parametrize("base", ["", "/v1/v1"])
async def test_whose_base_url_lacks_its_v1_or_has_it_twice_is_told(gw: Gateway, base: str):
    client = gw.client().with_options(base_url=gw.url + base)
    with pytest.raises(openai.NotFoundError, match=r"did you mean /v1/chat/completions\?"):
        await client.chat.completions.create(**HELLO)
    with pytest.raises(openai.NotFoundError, match=r"did you mean /v1/models\?"):
        await client.models.list()
    with pytest.raises(openai.NotFoundError) as raised:
        await gw.client().embeddings.create(model="llama", input="a")  # the worker's own: its model has none
    assert (raised.value.body["message"], raised.value.code) == ("Not Found", "invalid_request")


async def test_where_no_endpoint_can_serve_the_sdk_is_told_when_to_come_back(tmp_path: Path):
    async with SimWorker(SMALL) as worker:
        gone = worker
    async with gateway(tmp_path, gone, ready=False) as gw:

        async def known_to_be_gone() -> bool:
            return (await gw.metrics())['tidegate_endpoint_available{endpoint="worker-1",model="llama"}'] == 0

        await until(known_to_be_gone)
        with pytest.raises(openai.InternalServerError, match="worker-1: ") as raised:
            await gw.client().chat.completions.create(**HELLO)
        assert (raised.value.status_code, raised.value.code) == (503, "no_endpoint_available")
        assert raised.value.type == "service_unavailable"
        assert int(raised.value.response.headers["retry-after"]) >= 1


async def test_too_large_a_body_raises_an_error_that_says_so(gw: Gateway):
    body = HELLO | {"messages": [{"role": "user", "content": "a" * BODY_LIMIT}]}
    with pytest.raises(openai.APIStatusError, match=f"larger than {BODY_LIMIT} bytes") as raised:
        await gw.client().chat.completions.create(**body)
    assert (raised.value.status_code, raised.value.code) == (413, "request_too_large")


async def test_a_client_that_goes_on_sending_too_large_a_body_is_told_so_in_the_end(gw: Gateway):
    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * BODY_LIMIT

    headers = {"authorization": f"Bearer {gw.key}"}
    assert (await gw.http.post(CHAT, content=body(), headers=headers)).status_code == 413


# The shape on the wire


class Sent(NamedTuple):
    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


WITH_KEY = {"authorization": "Bearer {key}"}
GZIP = WITH_KEY | {"content-encoding": "gzip"}
REFUSED: dict[str, tuple[Sent, int, str]] = {
    "no key": (Sent("POST", CHAT, b"{}"), 401, "invalid_api_key"),
    "no key for models": (Sent("GET", "/v1/models"), 401, "invalid_api_key"),
    "unknown path": (Sent("GET", "/"), 404, "unknown_url"),
    "path with a slash too many": (Sent("POST", f"{CHAT}/", b"{}", WITH_KEY), 404, "unknown_url"),
    "health with a slash too many": (Sent("GET", "/health/live/"), 404, "unknown_url"),
    "path that says nothing good": (Sent("GET", "/v1/%0d%0ax-evil:%201/%00%ff"), 404, "unknown_url"),
    "unknown model to look up": (Sent("GET", "/v1/models/lama", b"", WITH_KEY), 404, "model_not_found"),
    "wrong method for calls": (Sent("GET", CHAT), 405, "method_not_allowed"),
    "wrong method for models": (Sent("DELETE", "/v1/models/llama", b"", WITH_KEY), 405, "method_not_allowed"),
    "wrong method for health": (Sent("POST", "/health/live", b"{}"), 405, "method_not_allowed"),
    "wrong method for metrics": (Sent("PUT", "/metrics", b"{}"), 405, "method_not_allowed"),
    "large": (Sent("POST", CHAT, b" " * (BODY_LIMIT + 1), WITH_KEY), 413, "request_too_large"),
    "gzip": (Sent("POST", CHAT, b"\x1f\x8b", GZIP), 415, "unsupported_content_encoding"),
    "empty": (Sent("POST", CHAT, b"", WITH_KEY), 400, "invalid_json"),
    "no JSON": (Sent("POST", CHAT, b'{"model":"llama",\n "n":}', WITH_KEY), 400, "invalid_json"),
    "NaN": (Sent("POST", CHAT, b'{"temperature":NaN}', WITH_KEY), 400, "invalid_json"),
    "half a surrogate": (Sent("POST", CHAT, rb'{"model":"\ud800"}', WITH_KEY), 400, "invalid_json"),
    "not UTF-8": (Sent("POST", CHAT, b'{"model":"llama","messages":["\xff"]}', WITH_KEY), 400, "invalid_json"),
    "deep": (Sent("POST", CHAT, b'{"model":"llama","messages":' + b"[" * 50_000, WITH_KEY), 400, "invalid_json"),
    "no object": (Sent("POST", CHAT, b"[]", WITH_KEY), 400, "invalid_type"),
    "nothing in it": (Sent("POST", CHAT, b"{}", WITH_KEY), 400, "missing_required_parameter"),
    "unmet demand": (
        Sent("POST", "/v1/completions", b'{"model":"llama","prompt":"a","routing":{"regions":["mars"]}}', WITH_KEY),
        400,
        "demands_not_met",
    ),
    "worker's own": (Sent("POST", CHAT, b'{"model":"llama","messages":[]}', WITH_KEY), 400, "invalid_request"),
}  # fmt: skip


async def answer(gw: Gateway, sent: Sent, **headers: str) -> Any:
    filled = {name: value.format(key=gw.key) for name, value in sent.headers.items()} | headers
    return await gw.http.request(sent.method, sent.path, content=sent.content, headers=filled)


@pytest.mark.parametrize(("sent", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_every_error_has_the_same_shape_and_a_request_id(
    gw: Gateway, sent: Sent, status: int, code: str
):
    reply = await answer(gw, sent)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    [error] = reply.json().values()
    assert list(reply.json()) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code
    assert isinstance(error["message"], str)
    assert isinstance(error["param"], str | None)
    assert MADE_ID.fullmatch(reply.headers["x-request-id"])
    assert ("allow" in reply.headers) == (status == 405)

    again = await answer(gw, sent, **{"x-request-id": "mine"})
    assert again.headers["x-request-id"] == "mine"


async def test_bad_json_is_said_where(gw: Gateway):
    reply = await answer(gw, Sent("POST", CHAT, b'{"model":"llama",\n "n":}', WITH_KEY))
    assert reply.json()["error"]["message"].endswith("at line 2, column 6")


async def test_of_a_field_given_twice_the_last_one_counts_here_and_at_the_worker(
    gw: Gateway, worker: SimWorker
):
    twice = b'{"model":"no","max_tokens":1,"prompt":"a","model":"llama","max_tokens":2}'
    reply = await answer(gw, Sent("POST", "/v1/completions", twice, WITH_KEY))
    assert reply.json()["usage"]["completion_tokens"] == 2
    assert worker.requests[-1].body == b'{"model":"sim","max_tokens":2,"prompt":"a"}'


# Request ids


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/metrics", "/v1/models", "/v1/models/llama"]
)
async def test_replies_that_are_no_errors_have_a_request_id_too(gw: Gateway, path: str):
    reply = await answer(gw, Sent("GET", path, b"", WITH_KEY))
    assert reply.status_code == 200
    assert MADE_ID.fullmatch(reply.headers["x-request-id"])
    mine = await answer(gw, Sent("GET", path, b"", WITH_KEY), **{"x-request-id": "mine"})
    assert mine.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "given", ["mine", "7c9e6679-7425-40de-944b-e07fc1f90ae7", "a/b:c=d+e_f.g", "x" * 128]
)
async def test_the_clients_own_request_id_is_kept_and_sent_on(
    gw: Gateway, worker: SimWorker, given: str, *, stream: bool
):
    reply = await gw.client().chat.completions.with_raw_response.create(
        **HELLO, stream=stream, extra_headers={"x-request-id": given}
    )
    assert reply.headers["x-request-id"] == given
    assert worker.requests[-1].header(b"x-request-id") == given


@pytest.mark.parametrize(
    "given", ["", "two words", "x" * 129, "x" * 20_000, 'a"b', "a;b", "a\tb"], ids=range(7)
)
async def test_a_request_id_that_could_do_harm_is_replaced(gw: Gateway, worker: SimWorker, given: str):
    reply = await gw.client().chat.completions.with_raw_response.create(
        **HELLO, extra_headers={"x-request-id": given}
    )
    made = reply.headers["x-request-id"]
    assert MADE_ID.fullmatch(made)
    assert worker.requests[-1].header(b"x-request-id") == made
