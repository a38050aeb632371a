import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routing.prefix import (
    LEAST_CAPACITY,
    MOST_PIECES,
    PIECE_BYTES,
    PIECE_TOKENS,
    RECENT,
    Ends,
    PrefixIndex,
    pieces_of,
    turn_of,
)

ROOM = 1000 * PIECE_TOKENS


def text(pieces: int, seed: int = 0) -> bytes:
    return b"".join(b"%08d%08d" % (seed, n) for n in range(pieces * PIECE_BYTES // 16))


def index_of(places: int, kv_tokens: int = ROOM, most_pieces: int = 10**6) -> PrefixIndex:
    index = PrefixIndex(most_pieces)
    for place in range(places):
        index.add(place, kv_tokens)
    return index


@given(st.binary(max_size=4 * PIECE_BYTES), st.binary(max_size=4 * PIECE_BYTES))
def test_prompts_share_the_names_of_just_those_whole_pieces_that_they_begin_with(a: bytes, b: bytes):
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    names_a, names_b = pieces_of(a), pieces_of(b)
    whole = common // PIECE_BYTES
    assert names_a[:whole] == names_b[:whole]
    assert not set(names_a[whole:]) & set(names_b[whole:])


def test_a_piece_is_named_with_all_that_stands_before_it():
    piece = text(1)
    names = pieces_of(piece * 5)
    assert len(set(names)) == 5
    assert all(0 <= name < 2**64 for name in names)


def test_names_are_the_same_in_every_process():
    assert pieces_of(b"x" * PIECE_BYTES) == (0x12A8_1A98_C393_EA66,)


def test_another_salt_gives_other_names():
    names = [pieces_of(text(3), salt) for salt in (b"", b"a", b"b")]
    assert len({name for some in names for name in some}) == 9


def test_a_prompt_without_end_is_looked_at_up_to_a_limit():
    assert len(pieces_of(bytes((MOST_PIECES + 9) * PIECE_BYTES))) == MOST_PIECES


def test_each_place_is_known_to_hold_what_was_sent_there_and_no_more():
    index = index_of(3)
    index.place(0, pieces_of(text(4)))
    index.place(1, pieces_of(text(4)[: 2 * PIECE_BYTES]))
    index.place(2, pieces_of(text(4, seed=1)))
    assert index.held(pieces_of(text(4) + text(3, seed=2))) == {0: 4, 1: 2}
    assert index.held(pieces_of(text(1, seed=3))) == {}
    assert index.held(()) == {}


def test_what_was_used_least_recently_is_forgotten_first_and_of_a_prompt_its_end():
    index = index_of(1, kv_tokens=20 * PIECE_TOKENS)
    first, second, third = (pieces_of(text(8, seed=n)) for n in range(3))
    index.place(0, first)
    index.place(0, second)
    index.place(0, first)
    index.place(0, third)
    assert index.held(first) == {0: 8}
    assert index.held(second) == {0: 4}
    assert index.held(third) == {0: 8}


def test_memory_is_bounded_over_all_places_whatever_they_have_room_for():
    index = index_of(4, most_pieces=100)
    for seed in range(50):
        for place in range(4):
            index.place(place, pieces_of(text(10, seed=seed * 4 + place)))
    assert len(index) == 100


def test_a_place_that_joins_takes_its_share_of_the_memory():
    index = index_of(1, most_pieces=100)
    for seed in range(10):
        index.place(0, pieces_of(text(10, seed=seed)))
    index.add(1, ROOM)
    assert len(index) == 50


def test_a_restarted_place_holds_nothing_and_the_others_what_they_held():
    index = index_of(2)
    for place in (0, 1):
        index.place(place, pieces_of(text(3)))
    index.forget(0)
    assert index.held(pieces_of(text(3))) == {1: 3}
    index.remove(1)
    assert len(index) == 0


def test_a_place_that_reports_less_than_expected_is_thought_to_have_less_room():
    index = index_of(1, kv_tokens=100 * PIECE_TOKENS)
    for seed in range(10):
        index.place(0, pieces_of(text(10, seed=seed)))
    for _ in range(20):
        index.correct(0, 1000, 10)
    assert LEAST_CAPACITY <= len(index) < 40
    for _ in range(100):
        index.correct(0, 1000, 1000)
    for seed in range(20):
        index.place(0, pieces_of(text(10, seed=seed)))
    assert len(index) == 100  # and never more than it declared


def test_a_trimmed_place_keeps_what_was_used_last():
    index = index_of(1)
    index.place(0, pieces_of(text(10)))
    index.place(0, pieces_of(text(5, seed=1)))
    index.trim(0, 5 * PIECE_TOKENS)
    assert index.held(pieces_of(text(10))) == {}
    assert index.held(pieces_of(text(5, seed=1))) == {0: 5}


@pytest.mark.parametrize("kv_tokens", [0, 1, PIECE_TOKENS])
def test_a_place_without_room_is_still_known_to_hold_a_little(kv_tokens: int):
    index = index_of(1, kv_tokens=kv_tokens)
    index.place(0, pieces_of(text(LEAST_CAPACITY + 4)))
    assert index.held(pieces_of(text(LEAST_CAPACITY + 4))) == {0: LEAST_CAPACITY}


def test_of_a_prompt_read_in_part_that_part_is_held_beyond_what_was_before():
    index = index_of(1)
    whole = pieces_of(text(12))
    index.place(0, whole[:4])
    index.place(0, whole)
    index.take_back(0, whole, 0.5)
    assert index.held(whole) == {0: 8}
    index.take_back(0, whole, 0.0)  # a second time changes nothing
    assert index.held(whole) == {0: 8}


def test_a_prompt_sent_so_long_ago_that_nobody_knows_what_was_held_before_is_left_as_it_is():
    index = index_of(1)
    whole = pieces_of(text(4))
    index.place(0, whole)
    for seed in range(1, RECENT + 1):
        index.place(0, pieces_of(text(1, seed=seed)))
    index.take_back(0, whole, 0.0)
    assert index.held(whole) == {0: 4}


def test_nothing_is_taken_back_of_a_place_that_was_restarted_since():
    index = index_of(1)
    whole = pieces_of(text(4))
    index.place(0, whole)
    index.forget(0)
    index.place(0, pieces_of(text(4)))
    index.take_back(0, whole, 0.0)
    assert index.held(whole) == {0: 4}


def turn(said: list[bytes]):
    """The pieces of a conversation in which questions and answers alternate, and where it stands."""
    prompt, asked = b"".join(said), len(b"".join(said[:-2]))
    answered = asked + len(said[-2]) if len(said) > 1 else 0
    pieces = pieces_of(prompt)
    return pieces, turn_of(prompt, pieces, Ends(len(prompt), asked, answered))


@pytest.mark.parametrize("cut", [0, 1, PIECE_BYTES - 1])
def test_who_was_sent_the_turn_before_holds_the_answer_to_it_as_well(cut: int):
    index = index_of(3)
    system, question, answer = text(4)[cut:], b"why?" * 10, text(3, seed=1)
    index.place(0, *turn([system + question]))
    index.place(1, *turn([system + b"how?" * 10]))
    pieces, then = turn([system + question, answer, b"really?" * 100])
    held = index.held(pieces, then)
    assert held[0] == len(system + question + answer) // PIECE_BYTES
    assert held[1] == len(system) // PIECE_BYTES
    assert 2 not in held
    index.place(0, pieces, then)
    assert index.held(pieces, then)[0] == len(pieces)
    index.forget(0)
    assert 0 not in index.held(pieces, then)


def test_an_answer_takes_room_until_it_is_part_of_the_next_turn():
    index = index_of(1, kv_tokens=20 * PIECE_TOKENS)
    other = pieces_of(text(10, seed=9))
    index.place(0, other)
    question = text(4) + b"why?"
    index.place(0, *turn([question]), output_tokens=5 * PIECE_TOKENS)
    assert index.held(other) == {0: 10}
    index.place(0, *turn([question, text(5, seed=1), b"really?"]), output_tokens=0.0)
    assert index.held(other) == {0: 10}  # and not that of the turn before beside it
    index.place(0, pieces_of(text(3, seed=2)))
    assert index.held(other)[0] < 10


def test_the_whole_of_a_prompt_is_told_from_one_that_goes_on_within_the_piece():
    index = index_of(1)
    index.place(0, *turn([text(4) + b"why?"]))
    pieces, then = turn([text(4) + b"why not?", text(2, seed=1), b"really?"])
    assert index.held(pieces, then) == {0: 4}


def test_a_salt_sets_the_turns_of_short_prompts_apart():
    prompt = b"why?"
    assert turn_of(prompt, (), Ends(4)) == turn_of(prompt, (), Ends(4))
    assert turn_of(prompt, (), Ends(4), b"a") != turn_of(prompt, (), Ends(4), b"b")


def test_who_refuses_a_turn_is_left_with_the_one_before_it_and_its_answer():
    index = index_of(1)
    index.place(0, *turn([text(4) + b"why?"]))
    pieces, then = turn([text(4) + b"why?", text(3, seed=1), b"really?"])
    before = index.held(pieces, then)
    for _ in range(2):
        index.place(0, pieces, then)
        index.take_back(0, pieces, 0.0)
        assert index.held(pieces, then) == before
    more = turn([text(4) + b"why?" + text(3, seed=1) + b"really?", text(9, seed=2), b"so?"])
    assert index.held(*more) == {0: 4}


PLACES = st.integers(0, 3)
PROMPTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map("".join)


def names(prompt: str) -> tuple[int, ...]:
    """Pieces of a toy prompt: its prefixes, as numbers."""
    return tuple(hash(prompt[: end + 1]) & (2**64 - 1) for end in range(len(prompt)))


@given(
    st.lists(PROMPTS, max_size=5), PROMPTS, st.lists(PROMPTS, max_size=5), st.floats(0, 1, allow_nan=False)
)
def test_taking_a_prompt_back_takes_nothing_of_those_sent_before_or_since(
    before: list[str], prompt: str, since: list[str], share_read: float
):
    index, without, sent = index_of(1), index_of(1), names(prompt)
    for each in before:
        index.place(0, names(each))
        without.place(0, names(each))
    index.place(0, sent)
    for each in since:
        index.place(0, names(each))
        without.place(0, names(each))
    most = index.held(sent)[0]
    index.take_back(0, sent, share_read)
    for each in (*before, *since):
        assert index.held(names(each)) == {0: len(each)}
    left = index.held(sent).get(0, 0)
    assert without.held(sent).get(0, 0) <= left <= most
    if share_read == 0.0:
        assert index.held(sent) == without.held(sent)
    if share_read == 1.0:
        assert left == most


class AgainstPlainSets(RuleBasedStateMachine):
    """The index with its bits, against a set of prefixes for each place, where nothing is ever evicted."""

    def __init__(self) -> None:
        super().__init__()
        self.index = index_of(4)
        self.sets: dict[int, set[int]] = {place: set() for place in range(4)}

    @rule(place=PLACES, prompt=PROMPTS)
    def send(self, place: int, prompt: str):
        self.index.place(place, names(prompt))
        self.sets[place].update(names(prompt))

    @rule(place=PLACES, prompt=PROMPTS)
    def send_in_vain(self, place: int, prompt: str):
        sent = names(prompt)
        self.index.place(place, sent)
        self.index.take_back(place, sent, 0.0)

    @rule(place=PLACES)
    def restart(self, place: int):
        self.index.forget(place)
        self.sets[place].clear()

    @rule(prompt=PROMPTS)
    def look(self, prompt: str):
        expected = {}
        for place, held in self.sets.items():
            count = next((n for n, name in enumerate(names(prompt)) if name not in held), len(prompt))
            if count:
                expected[place] = count
        assert self.index.held(names(prompt)) == expected

    @invariant()
    def counts_each_prefix_once(self):
        assert len(self.index) == len(set().union(*self.sets.values()))


TestAgainstPlainSets = AgainstPlainSets.TestCase
