"""Every provider against a server that speaks its own wire format: how it fails."""

import pytest
from litellm_backend import LITELLMS_OWN_WARNINGS, PATIENT, at, each_provider, keys_of, streamed, whole
from provider_wire import ANTHROPIC, BEDROCK, KEY, never, sends

from backends.base import (
    AttemptFailed,
    CallRejected,
    ConnectFailed,
    ContextTooShort,
    Misconfigured,
    Overloaded,
    ReplyMalformed,
    ServerFault,
    Unsupported,
)
from backends.litellm_api import LiteLLMAccess, LiteLLMBackend

pytestmark = LITELLMS_OWN_WARNINGS


@each_provider
async def test_an_error_of_the_callers_own_goes_back_in_the_providers_words(provider):
    refused = provider.error(400, "INVALID_ARGUMENT", "temperature: range 0..1")
    async with at(provider, sends(refused)) as (_, backend):
        for ask in (whole, streamed):
            with pytest.raises(CallRejected, match=r"^temperature: range 0\.\.1$") as caught:
                await ask(backend)
            assert caught.value.status == 400


@each_provider
async def test_a_throttle_says_when_to_come_back(provider):
    refused = provider.error(429, "ThrottlingException", "Too many requests")
    async with at(provider, sends(refused)) as (_, backend):
        for ask in (whole, streamed):
            with pytest.raises(Overloaded, match=r"^Too many requests$") as caught:
                await ask(backend)
            assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)


@each_provider
async def test_a_key_of_ours_that_is_refused_is_no_fault_of_the_callers(provider):
    async with at(provider, sends(provider.bad_key)) as (_, backend):
        for ask in (whole, streamed):
            with pytest.raises(Misconfigured) as caught:
                await ask(backend)
            assert KEY not in str(caught.value)


@each_provider
async def test_a_fault_of_the_providers_is_a_server_fault(provider):
    refused = provider.error(500, "InternalServerException", "Something broke")
    async with at(provider, sends(refused)) as (_, backend):
        for ask in (whole, streamed):
            with pytest.raises(ServerFault, match=r"^Something broke$"):
                await ask(backend)


@each_provider
async def test_a_stream_that_ends_early_is_never_taken_for_whole(provider):
    """However it ends: as if all had come, or in the middle of a chunk. litellm itself would say "stop"."""
    cut = provider.answers_stream(*provider.events)
    async with at(provider, cut) as (_, backend):
        with pytest.raises(AttemptFailed) as caught:
            await streamed(backend)
        assert caught.value.sort.leaves is not None

    async def breaks_off(peer):
        await peer.request()
        await peer.send(*provider.stream(*provider.events), b"ff\r\ndata: {")
        await peer.fin()

    async with at(provider, breaks_off) as (_, backend):
        with pytest.raises(AttemptFailed) as caught:
            await streamed(backend)
        assert caught.value.sort.leaves is not None


@each_provider
async def test_an_error_in_the_midst_of_a_stream_ends_it(provider):
    async with at(provider, provider.answers_stream(*provider.events, provider.broken)) as (_, backend):
        with pytest.raises(AttemptFailed) as caught:
            await streamed(backend)
        assert not isinstance(caught.value, Unsupported)


@each_provider
async def test_a_provider_that_is_not_there_could_not_be_reached(provider):
    async with at(provider, never) as (server, backend):
        params = {
            **provider.params(9),
            "vertex_credentials": provider.params(server.port).get("vertex_credentials"),
        }
        access = LiteLLMAccess(
            provider.model, keys_of(provider), {k: v for k, v in params.items() if v is not None}
        )
        nowhere = LiteLLMBackend(access, backend.thread, PATIENT)
        for ask in (whole, streamed):
            with pytest.raises(ConnectFailed):
                await ask(nowhere)


async def test_a_field_that_a_provider_does_not_know_is_named_and_says_nothing_of_its_health():
    async with at(ANTHROPIC, never) as (_, backend):
        with pytest.raises(Unsupported, match="logit_bias") as caught:
            await whole(backend, logit_bias={"1": 1})
        assert caught.value.sort.leaves is None
    async with at(ANTHROPIC, sends(ANTHROPIC.whole), drop_params=True) as (_, backend):
        assert await whole(backend, logit_bias={"1": 1})


@pytest.mark.parametrize("messages", [[5], [{"role": "user", "content": [{"type": "image_url"}]}]])
async def test_a_call_that_litellm_cannot_read_says_nothing_of_the_endpoints_health(messages):
    async with at(ANTHROPIC, never) as (_, backend):
        with pytest.raises((Unsupported, CallRejected)) as caught:
            await whole(backend, messages=messages)
        assert "Traceback" not in str(caught.value)
        assert "github.com" not in str(caught.value)


async def test_an_overloaded_anthropic_is_left_alone_for_as_long_as_it_asks():
    refused = ANTHROPIC.error(529, "overloaded_error", "Overloaded")
    async with at(ANTHROPIC, sends(refused)) as (_, backend):
        with pytest.raises(Overloaded) as caught:
            await whole(backend)
        assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Your credit balance is too low to access the Anthropic API.", Misconfigured),
        ("messages.0: all messages must have non-empty content", CallRejected),
    ],
)
async def test_an_empty_account_is_ours_to_fill(message, expected):
    async with at(ANTHROPIC, sends(ANTHROPIC.error(400, "invalid_request_error", message))) as (_, backend):
        with pytest.raises(expected):
            await whole(backend)


async def test_a_prompt_that_is_too_long_has_openais_code():
    refused = ANTHROPIC.error(
        400, "invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum"
    )
    async with at(ANTHROPIC, sends(refused)) as (_, backend):
        with pytest.raises(ContextTooShort) as caught:  # another endpoint may have a longer one
            await whole(backend)
        assert caught.value.rejected.code == "context_length_exceeded"


async def test_a_model_that_the_provider_does_not_have_is_our_mistake():
    refused = ANTHROPIC.error(404, "not_found_error", "model: claude-sonnet-4-5")
    async with at(ANTHROPIC, sends(refused)) as (_, backend):
        with pytest.raises(Misconfigured):
            await whole(backend)


async def test_a_reply_that_is_no_json_is_malformed():
    html = ANTHROPIC.error(200, "x", "y").replace(b"{", b"<")
    async with at(ANTHROPIC, sends(html)) as (_, backend):
        with pytest.raises(ReplyMalformed):
            await whole(backend)


async def test_secrets_in_params_are_taken_out_of_what_errors_say():
    said = "The key harbour-secret-access-key of region us-east-1 is odd"
    refused = BEDROCK.error(400, "ValidationException", said)
    async with at(BEDROCK, sends(refused)) as (_, backend):
        with pytest.raises(CallRejected, match=r"^The key \*\*\* of region us-east-1 is odd$"):
            await whole(backend)
