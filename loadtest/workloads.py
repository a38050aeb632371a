"""What a load asks for: the calls of one kind, rendered before the first of them is sent."""

from __future__ import annotations

import json
import random
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

_PROMPTS = 64
"""Different ones, used in turn."""
_WORDS = (
    *("the", "tide", "comes", "in", "and", "goes", "out", "again", "while", "boats", "wait", "for", "water"),
    *("under", "a", "grey", "sky", "near", "the", "old", "harbour"),
)


class Workload(Struct, frozen=True):
    """What is asked, and of whom."""

    url: str
    """Base URL, ending in /v1."""
    key: str
    model: str
    stream: bool = True
    include_usage: bool = True
    prompt_tokens: int = 200
    max_tokens: int = 64
    abort_fraction: float = 0.0
    timeout_s: float = 60.0
    prompt_start: str = ""
    """What every prompt begins with."""
    seed: int = 0


def render_requests(workload: Workload) -> tuple[bytes, ...]:
    """Whole requests, head and body, with prompts that differ."""
    dice = random.Random(workload.seed)
    parts = urlsplit(workload.url)
    head = (
        f"POST {parts.path.rstrip('/')}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"authorization: Bearer {workload.key}\r\ncontent-type: application/json\r\ncontent-length: "
    )
    requests = []
    for _ in range(_PROMPTS):
        prompt = workload.prompt_start + " ".join(dice.choices(_WORDS, k=workload.prompt_tokens))
        body = json.dumps(chat_body(workload, prompt)).encode()
        requests.append(f"{head}{len(body)}\r\n\r\n".encode() + body)
    return tuple(requests)


def chat_body(workload: Workload, prompt: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": workload.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": workload.max_tokens,
    }
    if workload.stream:
        body["stream"] = True
        if workload.include_usage:
            body["stream_options"] = {"include_usage": True}
    return body
