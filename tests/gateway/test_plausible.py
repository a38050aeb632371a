from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.openai import parse
from gateway.plausible import LONGEST_CONTEXT_TOKENS, plausible
from routing.types import Endpoint, Usage

WORKER = Endpoint(
    name="w1",
    model="llama",
    served_model="llama",
    kind="worker",
    url="http://127.0.0.1:1",
    context_tokens=32_768,
)
PROVIDER = structs.replace(WORKER, kind="openai")


def chat(content: object = "Why are there tides?", **more: object):
    body = {"model": "llama", "messages": [{"role": "user", "content": content}], **more}
    return parse("chat", msgspec.json.encode(body), {})


PICTURE = [{"type": "image_url", "image_url": {"url": "http://pictures/1"}}]

TRUE = {
    "a short answer": (chat(), Usage(30, 0, 12)),
    "as much as was asked for": (chat(max_tokens=100), Usage(30, 0, 100)),
    "for each choice": (chat(max_tokens=100, n=3), Usage(30, 0, 300)),
    "of beams that are not shown": (chat(max_tokens=10, use_beam_search=True, best_of=4), Usage(30, 0, 40)),
    "a long system prompt of the template's": (chat("Hi"), Usage(5_000, 0, 1)),
    "a picture behind a link": (chat(PICTURE), Usage(20_000, 0, 1)),
    "documents": (chat(documents=[{"text": "tide " * 4000}]), Usage(24_000, 0, 1)),
    "an echo and nothing else": (chat(max_tokens=0), Usage(30, 0, 0)),
}
FALSE = {
    "more than was asked for": (chat(max_tokens=100), Usage(30, 0, 101)),
    "more than the context holds": (chat(), Usage(30, 0, 40_000)),
    "a longer prompt than was sent": (chat(), Usage(20_000, 0, 12)),
    "a picture beyond the context": (chat(PICTURE), Usage(40_000, 0, 1)),
    "no prompt": (chat(), Usage(0, 0, 12)),
    "nothing": (chat(), Usage()),
}


@pytest.mark.parametrize("what", TRUE)
def test_what_a_worker_can_have_used_is_believed(what: str):
    request, usage = TRUE[what]
    assert plausible(usage, request, WORKER, seen_tokens=5)


@pytest.mark.parametrize("what", FALSE)
def test_what_no_worker_can_have_used_is_not(what: str):
    request, usage = FALSE[what]
    assert not plausible(usage, request, WORKER, seen_tokens=5)


@pytest.mark.parametrize("what", FALSE.keys() - {"nothing"})
def test_a_providers_word_is_taken(what: str):
    request, usage = FALSE[what]
    assert plausible(usage, request, PROVIDER, seen_tokens=5)


def test_an_answer_that_is_read_again_is_a_part_of_the_prompt():
    assert not plausible(Usage(20_000, 0, 0), chat(), WORKER)
    assert plausible(Usage(20_000, 0, 0), chat(), WORKER, read_tokens=19_000)


@given(st.text(max_size=200), st.integers(1, LONGEST_CONTEXT_TOKENS), st.integers(1, 4), st.data())
def test_an_honest_worker_is_never_doubted(content: str, max_tokens: int, choices: int, data: st.DataObject):
    request = chat(content, max_tokens=max_tokens, n=choices)
    endpoint = structs.replace(WORKER, context_tokens=None)
    prompt = data.draw(st.integers(1, len(content.encode(errors="replace")) + 500))
    usage = Usage(prompt, 0, data.draw(st.integers(1, max_tokens * choices)))
    assert plausible(usage, request, endpoint, seen_tokens=data.draw(st.integers(0, max_tokens)))
