import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_client import CAPTURES, needs_captures

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
    ServerFault,
    Unable,
)
from backends.refusal import BUSY_RETRY_S, LEAVING_RETRY_S, refusal
from backends.sse import CompletionStream, Shown
from loadtest.simworker import errors


def vllm(message: str, code: int, kind: str = "BadRequestError", param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (201, Misconfigured), (204, Misconfigured), (301, Misconfigured), (302, Misconfigured), (304, Misconfigured),
        (400, CallRejected), (401, KeyRefused), (402, KeyRefused), (403, KeyRefused), (404, CallRejected),
        (405, Misconfigured), (408, ServerFault), (409, CallRejected), (412, KeyRefused), (413, CallRejected),
        (415, CallRejected), (422, CallRejected), (425, ServerFault), (429, RateLimited), (498, Overloaded),
        (500, ServerFault), (501, ServerFault),
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
    body = b'{"error":{"message":"no","param":"messages","code":"content_policy_violation"}}'
    assert refusal(400, {}, body).code == "content_policy_violation"


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


KEYS = (
    *("error", "errors", "message", "detail", "code", "type", "param", "metadata", "raw", "reasons"),
    *("fault", "faultstring", "msg", "loc"),
)
SAID = st.recursive(
    st.sampled_from([None, True, 5, -0.5, 10**25, "", "tide", "model_not_found", "Request too large for"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS), below, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.sampled_from([204, 302, 400, 403, 404, 413, 422, 429, 463, 500, 503]), SAID)
def test_whatever_an_error_says_it_is_a_failure_with_a_message(status: int, said: object):
    failure = refusal(status, {}, json.dumps(said).encode())
    assert isinstance(failure, AttemptFailed | CallRejected)
    assert str(failure)


@pytest.mark.parametrize(
    ("loc", "param"), [(["body", "n"], "n"), ("n", "n"), (5, "5"), (None, None), ([], None), (True, "True")]
)
def test_the_place_of_a_finding_may_be_of_any_type(loc: object, param: str | None):
    failure = refusal(422, {}, json.dumps({"detail": [{"msg": "too many", "loc": loc}]}).encode())
    assert isinstance(failure, CallRejected)
    assert failure.param == param
    assert failure.message == (f"{param}: too many" if param else "too many")


def test_a_long_message_is_cut():
    assert len(str(refusal(400, {}, vllm("x" * 100_000, 400)))) == 2000
    assert len(str(refusal(500, {}, b"x" * 100_000))) == 2000


# What vLLM 0.32 says, each from its source or from the wire.
SHORT = "This model's maximum context length is 2048 tokens. However, your "
OF_VLLM: list[tuple[int, str, type[Exception]]] = [
    (400, SHORT + "prompt contains 2100 input tokens, which exceeds this limit even without any output", ContextTooShort),
    (400, SHORT + "prompt contains 9000 characters (more than 8192 characters, which is the upper bound)", ContextTooShort),
    (400, "Input length (2100) exceeds model's maximum context length (2048).", ContextTooShort),
    (400, "The decoder prompt (length 2100) is longer than the maximum model length of 2048. Make sure", ContextTooShort),
    (400, ("The decoder prompt (length 2048) plus the number of requested output tokens (at least 1) is longer than "
      "the maximum model length of 2048."), ContextTooShort),
    (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', Unable),
    (400, 'tool_choice="required" requires --tool-call-parser to be set', Unable),
    (400, "At most 1 image(s) may be provided in one prompt. Set `--limit-mm-per-prompt` to increase this limit.", Unable),
    (400, "Requested sample logprobs of 30, which is greater than max allowed: 20 (parameter=logprobs, value=30)", Unable),
    (400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.", Unable),
    (400, "Chat template is passed with request, but --trust-request-chat-template is not set. ", Unable),
    (400, "Got lora_request LoRARequest(lora_name='x') but LoRA is not enabled!", Unable),
    (400, "At most 1 image(s) may be provided in one prompt.", CallRejected),
    (400, "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", CallRejected),
    (400, "Stream options can only be defined when `stream=True`. (parameter=stream_options)", CallRejected),
    (400, "data_parallel_rank 3 is out of range [0, 1).", CallRejected),
    (422, "Failed to fetch the image: 404", CallRejected),
    (404, "The model `nope` does not exist. Valid aliases: tiny.", ModelMissing),
    (404, "Loading lora x failed: No adapter found for y", ModelMissing),
    (401, "Unauthorized", KeyRefused),
    (500, "EngineCore encountered an issue. See stack trace (above) for the root cause.", EngineDead),
    (500, "cannot schedule new futures after shutdown", Leaving),
    (500, "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB", OutOfMemory),
    (500, "No output received from the engine.", ServerFault),
    (500, "Internal server error", ServerFault),
    (501, "The model does not support Chat Completions API", Misconfigured),
    (503, ("The engine is currently busy and cannot accept new requests. Please try again later or on a different "
      "instance."), Overloaded),
    (503, "The engine has reached its prefill token backlog limit. Please try again later or on a different instance.",
     Overloaded),
    (503, "Request failed; please retry", Overloaded),
]  # fmt: skip


@pytest.mark.parametrize(("status", "message", "expected"), OF_VLLM)
def test_what_vllm_says_is_understood(status: int, message: str, expected: type[Exception]):
    failure = refusal(
        status, {}, vllm(message, status, "NotFoundError" if status == 404 else "BadRequestError")
    )
    assert type(failure) is expected
    if isinstance(failure, ContextTooShort):
        assert failure.context_tokens == 2048
    if isinstance(failure, Unable):
        assert (failure.rejected.status, failure.rejected.message) == (status, message)


def test_all_that_the_simulated_worker_says_is_among_it():
    said = [
        errors.busy(),
        errors.leaving(),
        errors.unknown_model("nope", "tiny"),
        errors.prompt_too_long(2100, 2048),
        errors.bad_value("max_tokens", 0, "max_tokens must be at least 1, got 0."),
    ]
    for each in said:
        message = json.loads(each.body)["error"]["message"]
        assert any(message.startswith(known) for _, known, _ in OF_VLLM), message
    assert OF_VLLM[20][1].encode() in errors.ENGINE_DIED


@needs_captures
def test_all_errors_that_a_real_vllm_was_seen_to_give_are_sorted():
    text = (CAPTURES / "errors.txt").read_text() + (CAPTURES / "priority_and_503.txt").read_text()
    found = re.findall(r'{"error":{.*?"code":(\d+)}}', text)
    bodies = [match[0] for match in re.finditer(r'{"error":{.*?"code":\d+}}', text)]
    kinds = Counter(
        type(refusal(int(status), {}, body.encode())).__name__
        for status, body in zip(found, bodies, strict=True)
    )
    assert kinds == {"CallRejected": 5, "ContextTooShort": 1, "ModelMissing": 1, "Overloaded": 2}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("EngineCore encountered an issue. See stack trace (above) for the root cause.", EngineDead),
        ("CUDA error: out of memory", OutOfMemory),
        ("cannot schedule new futures after shutdown", Leaving),
        ("something else", ServerFault),
    ],
)
def test_an_error_in_a_stream_is_sorted_by_the_same_words(message: str, expected: type[Exception]):
    stream = CompletionStream(Shown("llama"), 65_536)
    with pytest.raises(expected) as failed:
        stream.feed(b"data: " + vllm(message, 500) + b"\n\n")
    assert type(failed.value) is expected


def test_a_provider_s_word_for_a_prompt_that_is_too_long_is_understood_without_a_number():
    body = b'{"error":{"message":"too long","param":"messages","code":"context_length_exceeded"}}'
    failure = refusal(400, {}, body)
    assert isinstance(failure, ContextTooShort)
    assert failure.context_tokens is None
    assert failure.rejected.code == "context_length_exceeded"


# Bodies as providers send them, each from where it was published.
OPENAI_QUOTA = (  # github.com/ChatGPTNextWeb/NextChat/issues/3123
    b'{"error":{"message":"You exceeded your current quota, please check your plan and billing details.",'
    b'"type":"insufficient_quota","param":null,"code":"insufficient_quota"}}'
)
OPENAI_QUOTA_WITHOUT_CODE = OPENAI_QUOTA.replace(
    b'"code":"insufficient_quota"', b'"code":null'
)  # ...issues/1792
OPENAI_RATE = (  # github.com/openai/openai-dotnet/issues/404
    b'{"error":{"message":"Rate limit reached for gpt-4o-mini in organization org-1 on tokens per min (TPM): Limit 100000, '
    b'Used 96749, Requested 19126.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}'
)
OPENAI_TOO_LARGE = (  # github.com/vanderschaarlab/climb/issues/1
    b'{"error":{"message":"Request too large for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000, '
    b'Requested 30601.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}'
)
OPENAI_BAD_KEY = (  # github.com/assafelovic/gpt-researcher/issues/1108
    b'{"error":{"message":"Incorrect API key provided: dummy_key.","type":"invalid_request_error","param":null,'
    b'"code":"invalid_api_key"}}'
)
GROQ_BAD_KEY = (  # github.com/stackblitz-labs/bolt.diy/issues/176
    b'{"error":{"message":"Invalid API Key","type":"invalid_request_error","code":"invalid_api_key"}}\n'
)
GROQ_TOO_LARGE = (  # github.com/elizaOS/eliza/issues/4040
    b'{"error":{"message":"Request too large for model `llama-3.1-8b-instant` in organization `x` service tier '
    b'`on_demand` on tokens per minute (TPM): Limit 6000, Requested 6294","type":"tokens","code":"rate_limit_exceeded"}}'
)
AZURE_RATE = (  # github.com/microsoft/copilot-camp/issues/551
    b'{"error":{"code":"429","message": "Rate limit is exceeded. Try again in 2 seconds."}}'
)
DEEPSEEK_BALANCE = (  # github.com/Aider-AI/aider/issues/4851
    b'{"error":{"message":"Insufficient Balance","type":"unknown_error","param":null,"code":"invalid_request_error"}}'
)
MISTRAL_BAD_KEY = (  # github.com/cline/cline/issues/1734
    b'{\n  "message":"Unauthorized",\n  "request_id":"c61f2f15feca71626a990e3740f99245"\n}'
)
MISTRAL_INVALID = (  # github.com/Gitlawb/openclaude/issues/739
    b'{"detail":[{"type":"extra_forbidden","loc":["body","store"],"msg":"Extra inputs are not permitted","input":false},'
    b'{"type":"extra_forbidden","loc":["body","max_completion_tokens"],"msg":"Extra inputs are not permitted"}]}'
)
FIREWORKS_BAD_KEY = (  # github.com/langchain-ai/langchain/issues/15239
    b'{"fault":{"faultstring":"Invalid ApiKey","detail":{"errorcode":"oauth.v2.InvalidApiKey"}}}'
)
FIREWORKS_NO_MODEL = (  # github.com/warpdotdev/warp/issues/15107
    b'{"message":"Model not found, inaccessible, and/or not deployed","param":"model","code":"NOT_FOUND","type":"error"}'
)
XAI_BAD_KEY = (  # github.com/openai/codex/issues/1352, in the shape of github.com/nocmt/LLMSearchPlus/issues/2
    b'{"code":"Client specified an invalid argument","error":"Incorrect API key provided: sk***gA. You can obtain one"}'
)
XAI_INVALID = (  # github.com/nocmt/LLMSearchPlus/issues/2
    b'{"code":"Client specified an invalid argument","error":"The model expects a single `text` element per message."}'
)
GEMINI_BAD_KEY = (  # github.com/continuedev/continue/issues/10290, in a list as in google-gemini/gemini-cli/issues/7507
    b'[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]'
)
CLOUDFLARE_NO_ROUTE = (  # github.com/anomalyco/opencode/issues/23773
    b'{"result":null,"success":false,"errors":[{"code":7003,"message":"Could not route to /accounts/x"}],"messages":[]}'
)
OPENROUTER_RATE = (  # openrouter.ai/docs/api/reference/errors-and-debugging
    b'{"error":{"code":429,"message":"Provider returned error","metadata":{"raw":"rate-limited upstream"}}}'
)
OPENROUTER_MODERATED = (  # as above
    b'{"error":{"code":403,"message":"Your input was flagged","metadata":{"reasons":["violence"],"flagged_input":"x"}}}'
)


@pytest.mark.parametrize(
    ("status", "body", "expected", "says"),
    [
        (429, OPENAI_QUOTA, KeyRefused, "exceeded your current quota"),
        (429, OPENAI_QUOTA_WITHOUT_CODE, KeyRefused, "exceeded your current quota"),
        (429, OPENAI_RATE, RateLimited, "Rate limit reached for gpt-4o-mini"),
        (429, OPENAI_TOO_LARGE, CallTooLarge, "Requested 30601"),
        (413, GROQ_TOO_LARGE, CallTooLarge, "Requested 6294"),
        (401, OPENAI_BAD_KEY, KeyRefused, "Incorrect API key"),
        (401, GROQ_BAD_KEY, KeyRefused, "Invalid API Key"),
        (429, AZURE_RATE, RateLimited, "Try again in 2 seconds"),
        (402, DEEPSEEK_BALANCE, KeyRefused, "Insufficient Balance"),
        (401, MISTRAL_BAD_KEY, KeyRefused, "Unauthorized"),
        (401, b'{"detail":"Unauthorized"}', KeyRefused, "Unauthorized"),
        (401, FIREWORKS_BAD_KEY, KeyRefused, "Invalid ApiKey"),
        (404, FIREWORKS_NO_MODEL, ModelMissing, "Model not found"),
        (400, XAI_BAD_KEY, KeyRefused, "Incorrect API key"),
        (400, GEMINI_BAD_KEY, KeyRefused, "API key not valid"),
        (404, CLOUDFLARE_NO_ROUTE, CallRejected, "Could not route"),
        (429, OPENROUTER_RATE, RateLimited, "Provider returned error: rate-limited upstream"),
        (403, OPENROUTER_MODERATED, CallRejected, "Your input was flagged"),
        (403, b'{"error":{"message":"no access","code":"model_not_found"}}', ModelMissing, "no access"),
    ],
)  # fmt: skip
def test_what_providers_say_is_understood(status: int, body: bytes, expected: type[Exception], says: str):
    failure = refusal(status, {}, body)
    assert type(failure) is expected
    assert says in str(failure)


def test_a_refusal_of_fields_comes_back_in_words_with_the_first_field():
    failure = refusal(422, {}, MISTRAL_INVALID)
    assert isinstance(failure, CallRejected)
    assert failure.message == (
        "store: Extra inputs are not permitted; max_completion_tokens: Extra inputs are not permitted"
    )
    assert failure.param == "store"
    nested = b'{"object":"error","message":%b,"type":"invalid_request_error"}' % MISTRAL_INVALID
    assert refusal(422, {}, nested).message == failure.message


def test_a_code_that_is_no_word_is_not_passed_on():
    assert refusal(400, {}, b'{"error":{"code":"400","message":"x"}}').code is None
    assert refusal(400, {}, XAI_INVALID).code is None
    assert refusal(400, {}, XAI_INVALID).message == "The model expects a single `text` element per message."


def test_money_that_comes_back_by_itself_is_only_waited_for():
    # OpenRouter: a 402 with Retry-After is a budget in flight, one without is not a case for waiting.
    failure = refusal(402, {b"retry-after": b"3"}, b"{}")
    assert isinstance(failure, RateLimited)
    assert failure.retry_after_s == 3.0
