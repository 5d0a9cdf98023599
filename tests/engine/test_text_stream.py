"""Stop strings: what is held back, what wins, and that no cut of the ids changes the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.text_stream import TextStream

TAGS = ("<think>", "</think>")
TOKENIZER = Tokenizer.train(["abcab bc <think> </think>"], 270)


def stream(text: str, cuts: list[int], **settings) -> tuple[list[str], str | None]:
    """Return the pieces of a text fed in slices of its ids, and what stopped it."""
    ids, made, pieces = TOKENIZER.encode(text), TextStream(TOKENIZER, **settings), []
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        pieces.append(made.feed(ids[begin:end]))
    return [*pieces, made.flush()], made.stopped_by


def whole(text: str, **settings) -> tuple[str, str | None]:
    pieces, stopped = stream(text, list(range(len(TOKENIZER.encode(text)))), **settings)
    return "".join(pieces), stopped


def test_without_stop_strings_everything_comes_at_once() -> None:
    pieces, stopped = stream("abc", [1], stop=())
    assert "".join(pieces) == "abc"
    assert (pieces[0], stopped) != ("", None)


def test_a_stop_string_is_no_part_of_the_text() -> None:
    assert whole("one two three", stop=["two"]) == ("one ", "two")
    assert whole("one two", stop=["three"]) == ("one two", None)


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    ids, made = TOKENIZER.encode("xa"), TextStream(TOKENIZER, stop=["abz"])
    assert made.feed(ids) == "x"
    assert made.feed(TOKENIZER.encode("b")) == ""
    assert made.feed(TOKENIZER.encode("y")) == "aby"
    assert made.feed(TOKENIZER.encode("a")) == ""
    assert made.flush() == "a"


def test_the_string_that_is_complete_first_wins_then_the_longer() -> None:
    assert whole("abc", stop=["abc", "b"]) == ("a", "b")
    assert whole("abc", stop=["bc", "abc"]) == ("", "abc")
    assert whole("xbb", stop=["bb", "b"]) == ("x", "b")


def test_after_a_stop_nothing_comes() -> None:
    made = TextStream(TOKENIZER, stop=["b"])
    assert made.feed(TOKENIZER.encode("abc")) == "a"
    assert made.feed(TOKENIZER.encode("abc")) + made.flush() == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a b</think>  a b", ("<think>a b</think>  a", " b")),
        (" \n<think>a b</think> b", (" \n<think>a b</think> b", None)),  # the blank is spared too
        ("a b<think>", ("a", " b")),  # no trace begins
        ("<thin b", ("<thin", " b")),
        ("<think>a b", ("<think>a b", None)),  # never closed
        ("<think", ("<think", None)),
        ("<think></think> x b", ("<think></think> x", " b")),
    ],
)
def test_within_the_spared_tags_no_stop_string_counts(text, expected) -> None:
    assert whole(text, stop=[" b"], spare=TAGS) == expected


def test_a_text_too_short_to_be_the_tag_is_still_stopped() -> None:
    assert whole("<t", stop=["t"], spare=TAGS) == ("<", "t")


@given(
    st.text(alphabet="ab<think>/ é😀", max_size=24),
    st.lists(st.text(alphabet="ab<>/k é", min_size=1, max_size=4), max_size=4),
    st.booleans(),
    st.data(),
)
def test_no_cut_changes_the_text(text, stop, spares, data) -> None:
    text = data.draw(st.sampled_from(["", "<think>", " <think>"])) + text
    settings = {"stop": stop, "spare": TAGS if spares else None}
    num_ids = len(TOKENIZER.encode(text))
    cuts = sorted(data.draw(st.lists(st.integers(0, num_ids), max_size=5)))
    pieces, stopped = stream(text, cuts, **settings)
    assert ("".join(pieces), stopped) == whole(text, **settings)
    if not spares:
        ends = [text.find(s) + len(s) for s in stop if s in text]
        assert (stopped is None) == (not ends)
        if stopped is not None:
            assert "".join(pieces) == text[: min(ends) - len(stopped)]
