import msgspec
import pytest
from msgspec import Raw

from backends import handover
from backends.handover import CannotGoOn

USER = {"role": "user", "content": "Why?"}


def fields(**given: object) -> dict[str, Raw]:
    return {name: Raw(msgspec.json.encode(value)) for name, value in given.items()}


def plain(raw: dict[str, Raw]) -> dict[str, object]:
    return {name: msgspec.json.decode(value) for name, value in raw.items()}


def test_a_chat_goes_on_as_a_plain_completion_of_ids():
    call = fields(
        model="m", messages=[USER], tools=[], max_completion_tokens=20, max_tokens=99, min_tokens=5, logprobs=True, top_logprobs=3,
        stop=["x"], temperature=0, seed=7, top_k=4, n=1, stream=True, return_token_ids=True, request_id="r",
    )  # fmt: skip
    asked = handover.from_token(call, chat=True, prompt=[1, 2], ids=[3, 4, 5], context_tokens=100)
    assert plain(asked) == {
        "model": "m", "prompt": [1, 2, 3, 4, 5], "max_tokens": 17, "min_tokens": 2, "logprobs": 3, "temperature": 0, "seed": 7,
        "top_k": 4, "stream": True,
    }  # fmt: skip


def test_a_chat_without_a_limit_may_fill_the_context():
    asked = handover.from_token(
        fields(messages=[USER]), chat=True, prompt=[1, 2], ids=[3], context_tokens=100
    )
    assert plain(asked)["max_tokens"] == 100 - 2 - 1


def test_a_plain_completion_without_a_limit_has_sixteen_tokens():
    call = fields(prompt="Why?", logprobs=0)
    asked = handover.from_token(call, chat=False, prompt=[1], ids=[3, 4], context_tokens=0)
    assert plain(asked) == {"prompt": [1, 3, 4], "max_tokens": 14, "logprobs": 0}
    assert plain(handover.from_text(call, chat=False, text=" So", tokens=2)) == {
        "prompt": "Why? So", "max_tokens": 14, "logprobs": 0
    }  # fmt: skip


def test_penalties_for_what_has_been_written_become_biases():
    call = fields(prompt="x", frequency_penalty=0.5, presence_penalty=1, logit_bias={"3": 2, "9": 1})
    asked = handover.from_token(call, chat=False, prompt=[1], ids=[3, 4, 3], context_tokens=0)
    assert plain(asked)["logit_bias"] == {"3": 2 - 2 * 0.5 - 1, "4": -0.5 - 1, "9": 1}
    assert plain(asked)["frequency_penalty"] == 0.5


def test_biases_stay_within_what_a_worker_takes():
    call = fields(prompt="x", frequency_penalty=2, max_tokens=100)
    asked = handover.from_token(call, chat=False, prompt=[1], ids=[3] * 80, context_tokens=0)
    assert plain(asked)["logit_bias"] == {"3": -100}


def test_a_chat_goes_on_from_its_text_as_a_message_to_be_continued():
    call = fields(messages=[USER], max_tokens=20, stop="x", tools=[{"type": "function"}])
    asked = plain(handover.from_text(call, chat=True, text="Because", tokens=4))
    assert asked.pop("messages") == [USER, {"role": "assistant", "content": "Because"}]
    assert asked == {
        "max_tokens": 16, "tools": [{"type": "function"}], "add_generation_prompt": False, "continue_final_message": True
    }  # fmt: skip


def test_a_message_that_was_to_be_continued_is_continued_further():
    begun = {"role": "assistant", "content": "Be"}
    call = fields(messages=[USER, begun], continue_final_message=True)
    asked = plain(handover.from_text(call, chat=True, text="cause", tokens=1))
    assert asked["messages"] == [USER, {"role": "assistant", "content": "Because"}]
    with pytest.raises(CannotGoOn):
        handover.from_text(
            fields(messages=[USER, {"role": "assistant", "content": []}], continue_final_message=True),
            chat=True,
            text="x",
            tokens=1,
        )


@pytest.mark.parametrize(
    ("prompt", "ids"), [([1, 2], [1, 2]), ([[1, 2]], [1, 2]), ("x", None), (["x"], None), ([[1], [2]], None)]
)
def test_ids_that_the_client_gave_are_the_prompt(prompt, ids):
    assert handover.given_ids(fields(prompt=prompt)) == ids


def test_the_prompt_is_asked_for_as_the_template_makes_it():
    call = fields(
        model="m",
        messages=[USER],
        tools=[],
        chat_template_kwargs={"x": 1},
        add_generation_prompt=True,
        temperature=0,
    )
    asked = msgspec.json.decode(handover.prompt_request(call, chat=True, served_model="s"))
    assert asked == {
        "model": "s", "messages": [USER], "tools": [], "chat_template_kwargs": {"x": 1}, "add_generation_prompt": True
    }  # fmt: skip
    asked = handover.prompt_request(
        fields(prompt=["x"], add_special_tokens=False), chat=False, served_model="s"
    )
    assert msgspec.json.decode(asked) == {"model": "s", "prompt": "x", "add_special_tokens": False}


@pytest.mark.parametrize(
    ("shown", "text", "held"), [("ab", "abc", "c"), (" ab", "abc", "c"), ("ab", "ab", ""), ("ab", "xb", None), ("abc", "ab", None)]
)  # fmt: skip
def test_what_is_held_back_is_what_tokens_say_beyond_what_was_shown(shown, text, held):
    assert handover.beyond(shown, text) == held


@pytest.mark.parametrize(
    ("shown", "text", "held"),
    [
        ("high water", "high<|assistant|> water at", " at"),
        (" high water", "high</s> water at", " at"),
        ("high water", "high water<|end|> at", " at"),
        ("say <b>high</b>", "say <b>high</b><b>er", "<b>er"),
        ("say <b", "say <b>high", ">high"),
        ("high [TOP]", "high [CALLS] [TOP] [CALLS] at", None),
        ("high [TOP]", "high [CALLS][TOP] [CALLS] at", "  at"),
        ("high water", "low<|assistant|> water at", None),
    ],
)
def test_special_tokens_that_a_reply_leaves_out_are_left_out(shown, text, held):
    assert handover.beyond(shown, text) == held


def test_half_a_character_is_told_by_what_stands_for_it():
    assert handover.whole_characters("ab")
    assert not handover.whole_characters("a\ufffd")
