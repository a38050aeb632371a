from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import tiktoken

from gateway.openai import parse
from gateway.vocabulary import SAMPLED, Vocabularies, prompt_tokens, vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.openai import Request

SINGLE = {bytes([byte]): byte for byte in range(256)}
WORDS = [b"th", b"the", b" t", b" th", b" the", b"id", b"ide", b" tide"]
BY_WORDS = tiktoken.Encoding(
    "tides",
    pat_str=r" ?\w+|\s+|[^\s\w]+",
    mergeable_ranks={**SINGLE, **{word: 256 + rank for rank, word in enumerate(WORDS)}},
    special_tokens={},
)
"""A real one, with a small vocabulary of its own."""


def chat(content: Any, **fields: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    return parse("chat", json.dumps(body).encode(), {})


def test_a_prompt_has_the_tokens_of_its_text_and_some_around_each_message():
    text = len(BY_WORDS.encode_ordinary("the tide, the tide"))
    assert prompt_tokens(BY_WORDS, chat("the tide, the tide")) == text + 7
    assert prompt_tokens(BY_WORDS, chat([{"type": "text", "text": "the tide, the tide"}])) == text + 7


def test_what_the_wire_writes_with_escapes_counts_as_what_it_is():
    assert prompt_tokens(BY_WORDS, chat("潮")) == 3 + 7


def test_plain_completions_and_embeddings_count_their_text():
    completion = parse("completions", b'{"model": "m", "prompt": "\\u6f6e"}', {})
    assert prompt_tokens(BY_WORDS, completion) == 3
    embeddings = parse("embeddings", b'{"model": "m", "input": ["\\u6f6e", "a"]}', {})
    assert prompt_tokens(BY_WORDS, embeddings) == 5


@pytest.mark.parametrize(
    "request_",
    [
        chat([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]),
        chat([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]),
        chat(17),
        parse("completions", b'{"model": "m", "prompt": [1, 2, 3]}', {}),
        parse("embeddings", b'{"model": "m", "input": [[1, 2, 3]]}', {}),
    ],
)
def test_what_is_no_text_is_counted_as_before(request_: Request):
    assert prompt_tokens(BY_WORDS, request_) is None


def test_tools_are_counted_by_their_bytes_beside_it():
    tools = [{"type": "function", "function": {"name": "tide", "parameters": {"x": "y" * 4000}}}]
    with_tools = prompt_tokens(BY_WORDS, chat("the tide", tools=tools))
    assert with_tools is not None
    assert 1000 < with_tools < 1100


@pytest.mark.parametrize("times", [1, 100, 10_000])
def test_of_a_long_prompt_samples_say_how_many_tokens_it_has(times: int):
    text = "the tide is out, 潮 is in. " * times
    found, real = prompt_tokens(BY_WORDS, chat(text)), len(BY_WORDS.encode_ordinary(text)) + 7
    assert found is not None
    assert abs(found - real) <= (0 if len(text) <= SAMPLED else 0.02 * real)


def test_a_long_prompt_takes_no_longer_than_a_short_one():
    """But for the time that it takes to read JSON."""
    request = chat("x" * 10_000_000)
    began_s = time.process_time()
    assert prompt_tokens(BY_WORDS, request)
    assert time.process_time() - began_s < 1


def test_until_a_vocabulary_is_there_the_estimate_stands_and_then_the_count():
    vocabularies = Vocabularies(lambda model: BY_WORDS if model == "gpt-tide" else None)
    request = chat("潮" * 400)
    estimated = request.prompt_tokens
    vocabularies.count(request, "openai/gpt-tide")
    ends_s = time.monotonic() + 60
    while request.prompt_tokens == estimated:
        assert time.monotonic() < ends_s
        time.sleep(0.001)
        vocabularies.count(request, "openai/gpt-tide")
    assert request.prompt_tokens == 1207


def test_a_vocabulary_that_is_not_there_is_missed_once_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    vocabularies, request = Vocabularies(), chat("Ebb?")
    estimated, ends_s = request.prompt_tokens, time.monotonic() + 60
    for _ in range(3):
        vocabularies.count(request, "gpt-4o-mini")
        while not caplog.records:
            assert time.monotonic() < ends_s
            time.sleep(0.001)
    assert request.prompt_tokens == estimated
    (record,) = caplog.records
    assert "o200k_base is not in tiktoken's cache" in record.getMessage()
    assert list(tmp_path.iterdir()) == []


def test_only_openais_models_have_a_vocabulary_here():
    assert vocabulary("llama-3.1-8b") is None
