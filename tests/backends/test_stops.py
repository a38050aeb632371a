from hypothesis import given
from hypothesis import strategies as st

from backends.stops import Stops

TEXT = st.text("ab", max_size=12)


@given(
    st.lists(TEXT, max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    st.booleans(),
)
def test_text_ends_where_the_first_stop_string_is_complete_wherever_it_is_cut(pieces, strings, include):
    """Compared with looking for each string in all of the text, piece by piece."""
    stops, shown, found = Stops(strings, include=include), "", None
    for piece in pieces:
        text, found = stops.feed(piece)
        shown += text
        if found is not None:
            break
    else:
        shown += stops.rest()
    whole = "".join(pieces)
    ends = [
        (place + len(string), order, place)
        for order, string in enumerate(strings)
        if (place := whole.find(string)) >= 0
    ]
    if not ends:
        assert (shown, found) == (whole, None)
        return
    end, order, place = min(ends)
    assert found == strings[order]
    assert shown == whole[: end if include else place]


@given(TEXT, TEXT, TEXT, st.text("ab", min_size=1, max_size=5))
def test_what_was_shown_and_held_before_counts_as_text(shown, held, new, string):
    stops = Stops([string], shown, held)
    text, found = stops.feed(new)
    whole = shown + held + new
    ends_in_new = any(
        whole.startswith(string, at) and at + len(string) > len(shown + held) for at in range(len(whole))
    )
    assert (found == string) == ends_in_new
    if found is None:
        assert text + stops.rest() == held + new


def test_a_stop_string_that_ends_in_text_where_the_answer_may_not_stop_is_its_own():
    stops = Stops(["ab"])
    assert stops.feed("xab", may_stop=False) == ("xa", None)
    assert stops.feed("b") == ("b", None)
    assert stops.feed("ab") == ("b", "ab")
