"""What lines of the log look like, and what is taken out of them."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usage_rows import a_row

from gateway.config_telemetry import LogSection
from gateway.logs import OURS, PROMPT_CHARS, Prompts, begin_log, log_call
from gateway.openai import parse
from gateway.redaction import GONE, Redaction, without_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("gateway.of_this_test")
KEY = "tg-Zm9vYmFyYmF6cXV4cXV1eA-_x"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.NOTSET)


def as_json(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_of_json_has_its_time_level_place_and_words(capsys: pytest.CaptureFixture[str]):
    begin_log(LogSection(format="json"), process=3)
    log.warning("the tide is %s", "in")
    (line,) = as_json(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "the tide is in",
        "level": "warning",
        "logger": "gateway.of_this_test",
        "process": 3,
    }


def test_a_defect_is_one_line_of_json_with_its_trace(capsys: pytest.CaptureFixture[str]):
    begin_log(LogSection(format="json"))
    try:
        int(f"no good: {KEY}")
    except ValueError:
        log.exception("a defect")
    (line,) = as_json(capsys)
    assert "ValueError: invalid literal" in line["exception"]
    assert KEY not in line["exception"]


def test_text_is_as_people_read_it(capsys: pytest.CaptureFixture[str]):
    begin_log(LogSection(), process=1)
    log.info("serving on %s", "http://127.0.0.1:8000")
    line = capsys.readouterr().err
    assert line.endswith(" INFO gateway.of_this_test: serving on http://127.0.0.1:8000 [process 1]\n")


def test_modules_that_are_not_ours_never_tell_all(capsys: pytest.CaptureFixture[str]):
    begin_log(LogSection(level="debug"))
    logging.getLogger("some.client").info("POST with all its headers")
    log.debug("of ours")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_call_is_a_line_of_fields(capsys: pytest.CaptureFixture[str]):
    begin_log(LogSection(format="json"))
    log_call(a_row("c", request_id=KEY))
    (line,) = as_json(capsys)
    assert (line["event"], line["call_id"], line["outcome"]) == ("call", "c", "ok")
    assert (line["prompt_tokens"], line["duration_ms"], line["stream"]) == (10, 99.25, True)
    assert line["request_id"] == GONE


SECRETS = (
    KEY,
    "sk-proj-abcdefgh12345678",
    "Bearer abcdef123456",
    "hf_abcdefghijklmnop",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
)


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_key_is_taken_out(secret: str):
    shown = without_keys(f"it said {secret!r}, twice: {secret}.")
    assert secret.rsplit(maxsplit=1)[-1] not in shown
    assert shown.count(GONE) == 2


def test_the_password_of_a_url_is_taken_out_and_the_rest_stays():
    assert without_keys("postgresql://tide:geheim@db:5432/x") == f"postgresql://tide:{GONE}@db:5432/x"


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000",
        "key_0123456789abcdef of tenant acme",
        "hf-llama-3-70b-instruct",
        "skateboarding is not a secret",
    ],
)
def test_what_is_no_key_stays(text: str):
    assert without_keys(text) == text


@given(st.text(max_size=300))
def test_any_text_can_be_redacted_twice_alike(text: str):
    once = without_keys(text)
    assert without_keys(once) == once


def logged_prompt(body: bytes, api: str = "chat", *patterns: str) -> str:
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append
    calls = logging.getLogger("gateway.calls")
    calls.addHandler(handler)
    calls.setLevel(logging.INFO)
    try:
        Prompts(Redaction(patterns)).log(parse(api, body, {}), "acme", "c")
    finally:
        calls.removeHandler(handler)
        calls.setLevel(logging.NOTSET)
    (line,) = lines
    return line.prompt


def chat(content: object, **more: object) -> bytes:
    asked = {"model": "m", "messages": [{"role": "user", "content": content}], **more}
    return json.dumps(asked).encode()


def test_a_prompt_is_logged_as_text_without_what_names_a_person():
    text = "I am Jo, jo.doe@mail.example.org, +49 30 1234 5678, IBAN DE89 3704 0044 0532 0130 00, berth 12"
    shown = logged_prompt(chat(text, tools=[{"type": "function", "function": {"name": "f"}}]), "chat", "Jo")
    assert shown == f"user: I am {GONE}, {GONE}, {GONE}, IBAN {GONE}, berth 12"


def test_pictures_are_no_text_and_ids_of_tokens_neither():
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    assert logged_prompt(chat(parts)) == "user: what is this?"
    assert logged_prompt(b'{"model":"m","prompt":[1,2,3]}', "completions") == ""
    assert logged_prompt(b'{"model":"m","input":["a","b"]}', "embeddings") == "a\nb"


def test_a_long_prompt_is_cut_between_words_so_that_no_half_of_a_key_is_left():
    before = "tide " * (PROMPT_CHARS // 5 - 3)
    shown = logged_prompt(chat(f"{before}{KEY * 3} and on"))
    assert "tg-" not in shown
    assert len(shown) <= PROMPT_CHARS


def test_escapes_hide_nothing():
    body = chat("mail jo@mail.example.org now").replace(b"@", b"\\u0040")
    assert logged_prompt(body) == f"user: mail {GONE} now"
