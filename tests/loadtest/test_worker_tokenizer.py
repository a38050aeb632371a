from hypothesis import given
from hypothesis import strategies as st

from loadtest.simworker.source import FreeText
from loadtest.simworker.stops import Stops
from loadtest.simworker.tokenizer import ASSISTANT, EOS, FIRST_WORD, VOCABULARY, WORDS, Tokenizer, token_bytes

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab .,<|>suer/ \n潮")


@given(texts)
def test_decoding_gives_back_what_was_encoded(text: str):
    tokenizer = Tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == ids
    assert all(0 < token < VOCABULARY for token in ids)


@given(texts, st.integers(0, 2**32), st.integers(1, 60))
def test_emitted_text_read_again_is_cut_into_the_tokens_emitted(prompt: str, seed: int, count: int):
    tokenizer = Tokenizer()
    ids = [*tokenizer.encode(prompt), ASSISTANT]
    source = FreeText(ids, seed)
    emitted = [source.next(may_end=False) for _ in range(count)]
    assert tokenizer.encode(tokenizer.decode(emitted)) == emitted
    assert tokenizer.encode(tokenizer.decode(ids + emitted)) == ids + emitted


@given(st.lists(st.integers(1, 6000), min_size=1), st.integers(0, 2**32), st.integers(0, 80))
def test_what_comes_next_depends_on_nothing_but_the_tokens_so_far(prompt: list[int], seed: int, cut: int):
    source = FreeText(prompt, seed)
    emitted = [source.next(may_end=True) for _ in range(100)]
    if EOS in emitted:
        emitted = emitted[: emitted.index(EOS) + 1]
    cut = min(cut, len(emitted) - 1)
    again = FreeText(prompt + emitted[:cut], seed)
    assert [again.next(may_end=True) for _ in emitted[cut:]] == emitted[cut:]


def test_every_word_is_one_token_and_some_take_more_than_one_byte_a_character():
    tokenizer = Tokenizer()
    assert len(set(WORDS)) == len(WORDS)
    assert [tokenizer.encode(word.decode()) for word in WORDS] == [
        [FIRST_WORD + n] for n in range(len(WORDS))
    ]
    assert any(len(word) > len(word.decode()) for word in WORDS)


@given(st.integers(0, VOCABULARY - 1))
def test_every_id_of_the_vocabulary_has_bytes_or_is_reserved(token: int):
    assert len(token_bytes(token)) <= 16


@given(
    st.lists(st.text("ab", max_size=4)),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_are_found_wherever_the_text_is_cut(pieces: list[str], strings: list[str]):
    stops, shown, whole = Stops(tuple(strings)), "", "".join(pieces)
    for piece in pieces:
        text, stopped_by = stops.feed(piece)
        shown += text
        if stopped_by is not None:
            assert not any(string in shown for string in strings)
            assert whole.startswith(shown + stopped_by)
            return
    assert shown + stops.rest() == whole
    assert not any(string in whole for string in strings)
