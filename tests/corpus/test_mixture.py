"""The order of documents: shares, samples, and what is held out."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fretsaw.corpus.mixture import (
    choose_heldout,
    choose_sample,
    fair_shares,
    fingerprint,
    interleaved,
    places,
    shuffled,
    spread,
)


def test_a_shuffle_holds_no_more_than_it_may_and_depends_on_the_seed() -> None:
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield number

    first = list(itertools.islice(shuffled(endless(), 10, "a"), 100))
    assert len(read) <= 111
    assert len(set(first)) == 100
    assert first == list(itertools.islice(shuffled(endless(), 10, "a"), 100))
    assert first != list(itertools.islice(shuffled(endless(), 10, "b"), 100))
    assert sorted(shuffled(iter(range(7)), 10, "a")) == list(range(7))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.floats(0.05, 5), min_size=1, max_size=4), st.integers(1, 30), st.integers(0, 9))
def test_tokens_are_shared_by_weight_at_every_point(weights, longest, seed) -> None:
    draw = np.random.default_rng(seed)
    streams = [(int(draw.integers(1, longest + 1)) for _ in itertools.count()) for _ in weights]
    given_ = [0.0] * len(weights)
    for source, size in itertools.islice(interleaved(streams, weights, int), 300):
        given_[source] += size
        done = [one / weight for one, weight in zip(given_, weights, strict=True)]
        assert max(done) - min(done) <= longest / min(weights) + 1e-9


def test_what_runs_out_leaves_its_share_to_the_others() -> None:
    order = [n for n, _ in interleaved([iter([1] * 3), iter([1] * 7)], [1, 1], int)]
    assert order == [0, 1, 0, 1, 0, 1, 1, 1, 1, 1]


def test_a_share_goes_by_weight_as_far_as_a_source_goes() -> None:
    assert fair_shares([100, 100], [1, 3], 40).tolist() == [10, 30]
    assert fair_shares([100, 20], [1, 3], 40).tolist() == [20, 20]  # 30 wanted of 20
    assert fair_shares([5, 20, 100], [1, 1, 2], 60).tolist() == [5, 55 / 3, 110 / 3]
    assert fair_shares([10, 20], [1, 1], 99).tolist() == [10, 20]
    assert fair_shares([0, 20], [1, 1], 10).tolist() == [0, 10]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(2, 300), st.integers(1, 3), st.integers(1, 9000), st.integers(0, 99))
def test_a_sample_has_what_is_wanted_and_no_more_than_a_document_of_each_source_beyond(
    num_documents, num_sources, wanted, seed
) -> None:
    draw = np.random.default_rng(seed)
    prints = draw.integers(0, 2**62, num_documents)
    sizes = draw.integers(1, 50, num_documents)
    sources = draw.integers(0, num_sources, num_documents)
    weights = draw.uniform(0.1, 3, num_sources).tolist()
    chosen = choose_sample(prints, sizes, sources, weights, wanted, seed)
    total = sizes[chosen].sum()
    assert total >= min(wanted, sizes.sum())
    assert total < wanted + 50 * num_sources
    at = places(prints, seed)
    for source in range(num_sources):
        own = sources == source
        left_out = at[own & ~chosen]
        assert not len(left_out) or at[own & chosen].max(initial=0) <= left_out.min()


def test_places_are_uniform_and_other_for_every_seed() -> None:
    prints = np.arange(20_000)
    one, other = places(prints, 0), places(prints, 1)
    for at in (one, other):
        assert abs(np.histogram(at, 20, (0, 1))[0] - 1000).max() < 130  # four sigma
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_near_duplicates_have_one_fingerprint() -> None:
    text = "Tom has 12 pens. He buys 7 more."
    for same in (text.upper(), text.replace(" ", "\n  "), text.replace(".", " !"), f"  {text}"):
        assert fingerprint(same) == fingerprint(text)
    for other in (text.replace("12", "13"), text + " Now?", "", "..."):
        assert fingerprint(other) != fingerprint(text)
    assert fingerprint("...") != fingerprint("!")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(2, 200), st.integers(1, 3), st.integers(1, 5000), st.integers(0, 99))
def test_every_source_holds_out_its_share_and_a_text_is_on_one_side(
    num_documents, num_sources, wanted, seed
) -> None:
    draw = np.random.default_rng(seed)
    prints = draw.integers(0, num_documents, num_documents)  # some twice
    sizes = draw.integers(1, 100, num_documents)
    sources = draw.integers(0, num_sources, num_documents)
    held = choose_heldout(prints, sizes, sources, wanted)
    assert not set(prints[held]) & set(prints[~held])
    for source in range(num_sources):
        if len(set(prints[sources == source])) > 1:
            assert held[sources == source].any()


def test_every_beginning_is_a_sample_of_the_whole() -> None:
    sizes = np.array([10] * 100 + [5] * 600)
    sources = np.array([0] * 100 + [1] * 600)
    order = spread(sizes, sources, (0, 0))
    assert sorted(order) == list(range(700))
    for beginning in (10, 50, 300, 700):
        own = order[:beginning]
        share = sum(sizes[one] for one in own if sources[one] == 0) / sum(sizes[own])
        assert abs(share - 0.25) < 15 / sum(sizes[own])
    assert order == spread(sizes, sources, (0, 0)) != spread(sizes, sources, (1, 0))
