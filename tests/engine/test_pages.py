"""The page pool against a model of itself: what is held, what is kept, and where contents lie."""

import random

import pytest

from fretsaw.engine.pages import BLOCK, OutOfPages, PagePool


def blocks_of(text: list[int]) -> int:
    return len(text) // BLOCK


class Written:
    """A pool beside the contents that its copies and writes would have made."""

    def __init__(self, num_pages: int, page_size: int):
        self.pool = PagePool(num_pages, page_size)
        self.contents: dict[int, tuple[int, ...]] = {}

    def move(self) -> None:
        for source, destination, num_tokens in self.pool.moves:
            self.contents[destination] = self.contents.get(source, ())[:num_tokens]
        self.pool.moves.clear()

    def hold(self, text: list[int]) -> tuple[list[int], int]:
        """Hold pages for a text, reusing what is found; check that it is the text's beginning."""
        size = self.pool.page_size
        keys = self.pool.prefix_keys(text, [])
        found = self.pool.num_found(keys)
        pages = self.pool.copy_prefix(keys[:found])
        self.move()
        reused = min(found * BLOCK, len(pages) * size)
        for number, page in enumerate(pages):
            expected = tuple(text[number * size : min((number + 1) * size, reused)])
            assert self.contents[page][: len(expected)] == expected
        try:
            while len(pages) * size < len(text):
                pages.append(self.pool.allocate())
        except OutOfPages:
            self.move()
            self.pool.free(pages)
            raise
        self.move()
        for number, page in enumerate(pages):
            self.contents[page] = tuple(text[number * size : (number + 1) * size])
        for block in range(reused // BLOCK, len(text) // BLOCK):
            self.pool.register(pages[block * BLOCK // size], keys[block])
        return pages, reused


@pytest.mark.parametrize("seed", range(20))
def test_reused_pages_hold_the_text_they_are_found_by(seed: int) -> None:
    chooser = random.Random(seed)
    written = Written(num_pages=12, page_size=16)
    texts = [[chooser.randrange(3) for _ in range(70)] for _ in range(3)]
    held: list[list[int]] = []
    num_reused = 0
    for _ in range(300):
        if held and chooser.random() < 0.5:
            written.pool.free(held.pop(chooser.randrange(len(held))))
        else:
            text = chooser.choice(texts)[: chooser.randrange(1, 70)]
            try:
                pages, reused = written.hold(text + [chooser.randrange(3) for _ in range(5)])
            except OutOfPages:
                continue
            held.append(pages)
            num_reused += reused
        if chooser.random() < 0.2:
            moved = written.pool.compact()
            written.move()
            held = [[moved.get(page, page) for page in pages] for pages in held]
            assert written.pool.span == written.pool.num_held
        assert sorted(page for pages in held for page in pages) == sorted(written.pool._held)
        assert written.pool.num_available == 12 - sum(map(len, held))
    assert num_reused > 500


def test_held_pages_stay_low_and_what_is_kept_drifts_up() -> None:
    written = Written(num_pages=4, page_size=8)
    first, _ = written.hold([1] * 8)
    written.pool.free(first)
    second, _ = written.hold([2] * 8)
    assert first == second == [0]  # the old text moved away
    third, reused = written.hold([1] * 8)
    assert (third, reused) == ([1], 8)


def test_the_text_used_longest_ago_is_given_up_first() -> None:
    written = Written(num_pages=2, page_size=8)
    for number in (1, 2):
        pages, _ = written.hold([number] * 8)
        written.pool.free(pages)
    pages, reused = written.hold([1] * 8)  # used again
    assert reused == 8
    written.pool.free(pages)
    pages, _ = written.hold([3] * 8)
    written.pool.free(pages)
    assert written.pool.num_found(written.pool.prefix_keys([1] * 8, [])) == 1
    assert written.pool.num_found(written.pool.prefix_keys([2] * 8, [])) == 0


def test_a_text_that_was_moved_is_no_newer_for_it() -> None:
    written = Written(num_pages=12, page_size=8)
    older, _ = written.hold([1] * 32)
    newer, _ = written.hold([2] * 32)
    written.pool.free(older)
    written.pool.free(newer)
    for _ in range(8):
        written.pool.allocate()
    found = [written.pool.num_found(written.pool.prefix_keys([n] * 32, [])) for n in (1, 2)]
    assert found == [0, 4]


def test_other_weights_find_nothing() -> None:
    written = Written(num_pages=4, page_size=8)
    pages, _ = written.hold([1] * 8)
    written.pool.forget(version=1)
    written.pool.free(pages)
    assert written.hold([1] * 8)[1] == 0


def test_no_page_is_given_twice() -> None:
    pool = PagePool(3, 8)
    assert [pool.allocate() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OutOfPages):
        pool.allocate()
