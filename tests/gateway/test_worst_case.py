from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger import amount_nano_usd
from gateway.openai import parse
from gateway.worst_case import (
    Calibration,
    give_most,
    most_nano_usd,
    most_output_tokens,
    most_prompt_tokens,
)
from routing.types import Price, Usage


def chat(content: object = "Ebb?", **fields: object):
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    return parse("chat", json.dumps(body, ensure_ascii=False).encode(), {})


@given(st.text(max_size=300))
def test_a_prompt_has_no_more_tokens_than_bytes(text: str):
    assert most_prompt_tokens(chat(text), [None]) >= len(text.encode()) + 256 - 2


def test_a_picture_counts_as_the_largest_and_not_by_its_encoding():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    assert 20_000 < most_prompt_tokens(chat([picture]), [None]) < 21_000
    linked = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert 40_000 < most_prompt_tokens(chat([linked, linked]), [None]) < 41_000


def test_a_picture_counts_however_its_field_is_written():
    for part in (
        b'{"type": "image_url", "image\\u005furl": {"url": "https://example.com/a.png"}}',
        b'{"type": "image_\\u0075rl", "im\\u0061ge_url": "https://example.com/a.png"}',
        b'{"type": "image_url", "uuid": "the-one-of-just-now"}',
        b'{"image_url": "https://example.com/a.png"}',
    ):
        body = b'{"model": "m", "messages": [{"role": "user", "content": [%b]}]}' % part
        assert 20_000 < most_prompt_tokens(parse("chat", body, {}), [None]) < 21_000


def test_all_counts_that_a_template_or_a_tokenizer_may_read():
    plain = most_prompt_tokens(chat(), [None])
    for extra in (
        {"documents": [{"title": "Tides", "text": "x" * 1000}]},
        {"functions": [{"name": "x" * 1000}]},
        {"chat_template": "{% for i in range(9) %}" + "x" * 1000},
        {"a_field_that_is_new": "x" * 1000},
    ):
        assert most_prompt_tokens(chat(**extra), [None]) >= plain + 1000
    embeds = parse("completions", b'{"model": "m", "prompt_embeds": "%b"}' % (b"A" * 1000), {})
    assert most_prompt_tokens(embeds, [None]) >= 1000
    assert most_prompt_tokens(chat(user="x" * 100, temperature=1.0, stop="x" * 100), [None]) == plain


def test_a_plain_completion_that_does_not_say_how_much_writes_what_openais_do():
    request = parse("completions", b'{"model": "m", "prompt": "Low water"}', {})
    assert most_output_tokens(request, 4096, [None], 3) == 16


def test_a_prompt_fits_into_the_longest_context_where_all_are_known():
    assert most_prompt_tokens(chat("x" * 5000), [1000, 2000]) == 2000
    assert most_prompt_tokens(chat("x" * 5000), [1000, None]) > 5000


def test_an_answer_is_as_long_as_the_call_says_but_no_longer_than_a_context():
    assert most_output_tokens(chat(max_tokens=7), 4096, [None], 10) == 7
    assert most_output_tokens(chat(max_tokens=10**6), 4096, [8192], 10) == 8192


def test_where_the_call_says_nothing_it_is_given_what_it_may_write_beside_its_prompt():
    request = chat()
    assert most_output_tokens(request, 4096, [None], 10) == 4096
    assert most_output_tokens(request, 4096, [1000, None], 100) == 784
    assert most_output_tokens(request, 4096, [1000], 900) == 16
    give_most(request, 784)
    assert json.loads(request.body_for("m"))["max_completion_tokens"] == 784
    assert request.max_tokens == 784


def test_embeddings_write_nothing():
    request = parse("embeddings", b'{"model": "m", "input": "Low water"}', {})
    assert most_output_tokens(request, 4096, [None], 3) == 0
    assert most_prompt_tokens(request, [None]) == len('"Low water"') + 256


PRICES = st.builds(
    Price,
    *(st.integers(0, 10**8) for _ in range(2)),
    *(st.none() | st.integers(0, 10**8) for _ in range(2)),
    st.sampled_from([1, 1000]),
)


@given(st.lists(PRICES, min_size=1, max_size=3), st.data())
def test_no_usage_within_the_bounds_costs_more_than_is_held(prices: list[Price], data: st.DataObject):
    prompt, output = (data.draw(st.integers(0, 10**6)) for _ in range(2))
    held = most_nano_usd(prices, prompt, output)
    read = data.draw(st.integers(0, prompt))
    wrote = data.draw(st.integers(0, output))
    usage = Usage(
        read, data.draw(st.integers(0, read)), wrote, reasoning_tokens=data.draw(st.integers(0, wrote))
    )
    for price in prices:
        assert amount_nano_usd(price, usage) <= held


def test_estimates_follow_what_prompts_turn_out_to_have():
    calibration = Calibration()
    assert calibration.tokens("m", 100) == 100
    for _ in range(50):
        calibration.saw("m", 100, 150)
    assert calibration.tokens("m", 100) == 150
    assert calibration.tokens("other", 100) == 100
    calibration.saw("m", 0, 5)
    calibration.saw("lies", 1, 10**9)
    assert calibration.tokens("lies", 10) == 40
