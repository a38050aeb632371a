from decimal import Decimal

import pytest

from backends.litellm_prices import known
from backends.litellm_thread import INSTALL, is_installed
from routing.types import Price

if not is_installed():
    pytest.skip(f"litellm is not installed: {INSTALL}", allow_module_level=True)


@pytest.mark.parametrize(
    ("model", "usd_per_million"),
    [
        ("anthropic/claude-sonnet-4-5", ("3", "15", "0.3")),
        ("bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0", ("3.3", "16.5", "0.33")),
        ("bedrock/converse/us.anthropic.claude-sonnet-4-5-20250929-v1:0", ("3.3", "16.5", "0.33")),
        ("bedrock/meta.llama3-1-8b-instruct-v1:0", ("0.22", "0.22", None)),
        ("azure/gpt-4o", ("2.5", "10", "1.25")),
        ("gemini/gemini-2.5-flash", ("0.3", "2.5", "0.03", "2.5")),
        ("vertex_ai/gemini-2.5-flash", ("0.3", "2.5", "0.03", "2.5")),
        ("azure/text-embedding-3-small", ("0.022", "0", None)),
    ],
)
def test_prices_are_whole_pico_usd_per_token(model, usd_per_million):
    prices = [None if usd is None else int(Decimal(usd) * 1_000_000) for usd in usd_per_million]
    assert known(model, {}).price == Price(*prices)


def test_a_bedrock_model_has_the_price_of_its_region():
    model = "bedrock/meta.llama3-8b-instruct-v1:0"
    prices = {
        region: known(model, {"aws_region_name": region}).price for region in ("us-east-1", "eu-west-2")
    }
    assert prices["eu-west-2"].input_pico_usd > prices["us-east-1"].input_pico_usd > 0


@pytest.mark.parametrize(
    "model", ["azure/our-deployment", "anthropic/gpt-4o", "nobody/nothing", "/", "dall-e-3/"]
)
def test_a_model_that_is_not_in_the_table_under_its_provider_is_unknown(model):
    assert known(model, {}) is None


def test_a_model_without_a_price_per_token_is_unknown():
    assert known("azure/dall-e-3", {}) is None


def test_what_a_model_can_do_is_known():
    chat, embedding = known("anthropic/claude-sonnet-4-5", {}), known("azure/text-embedding-3-small", {})
    assert (chat.context_tokens, chat.capabilities) == (200_000, {"tools", "vision", "json_schema"})
    assert embedding.capabilities == {"embeddings"}
    assert "logprobs" in known("azure/gpt-4o", {}).capabilities
