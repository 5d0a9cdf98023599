"""Who holds which page of key-value memory; plain bookkeeping, without tensors.

A page is `page_size` tokens of one sequence, in every layer that attends. Pages that sequences
hold are kept at the low end of memory, so that a step reads one dense range of it and copies
nothing; what finished sequences leave behind drifts upwards and is kept for reuse until its place
is needed. A new sequence that begins like an earlier one copies the pages they share.

A prefix is found by its key: a digest over the weights' version and the tokens, chained from block
to block, so it stands for the whole text before it and for the weights that read it.
"""

import hashlib
import heapq
from array import array
from collections.abc import Sequence
from typing import NamedTuple

BLOCK = 8  # tokens of one key; a page holds several, so that short beginnings are found as well


class OutOfPages(Exception):
    """No page can be had without taking one from a sequence."""


class Move(NamedTuple):
    """The first tokens of one page become another's; what that page held behind them is cleared.

    So no position of a held page has another text's numbers: a NaN among them would spread, as even
    0 times NaN is NaN.
    """

    source: int
    destination: int
    num_tokens: int


class PagePool:
    """The pages: held by a sequence, kept for reuse, or free.

    `moves` lists what becomes of contents before the next step, in order; whoever computes it takes
    the list.
    """

    def __init__(self, num_pages: int, page_size: int):
        assert page_size % BLOCK == 0, f"a page of {page_size} tokens is no multiple of {BLOCK}"
        self.num_pages, self.page_size = num_pages, page_size
        self.version = 0
        self.moves: list[Move] = []
        self._held: set[int] = set()
        self._kept: dict[int, int] = {}  # page -> when it was used last
        self._clock = 0
        # Heaps; entries of the latter two may be out of date and are then passed over.
        self._low = list(range(num_pages))  # pages that no sequence holds
        self._high = sorted(-page for page in self._low)  # the same from above
        self._ages: list[tuple[int, int]] = []  # (when used last, page) of what is kept
        self._keys: dict[int, list[bytes]] = {}  # page -> keys of the blocks it holds
        self._page_of: dict[bytes, int] = {}

    @property
    def num_held(self) -> int:
        """Pages that sequences hold."""
        return len(self._held)

    @property
    def num_available(self) -> int:
        """Pages that can be had without taking any from a sequence."""
        return self.num_pages - len(self._held)

    @property
    def span(self) -> int:
        """The pages of the low range that holds every held page."""
        return max(self._held, default=-1) + 1

    # --- holding ----------------------------------------------------------------------------------

    def allocate(self) -> int:
        """Give the lowest page that no sequence holds, cleared; what was kept there moves up."""
        page = self._hold_lowest()
        self.moves.append(Move(page, page, 0))
        return page

    def _hold_lowest(self) -> int:
        if not self._low:
            raise OutOfPages
        page = heapq.heappop(self._low)
        if page in self._kept:
            self._move_away(page)
        self._held.add(page)
        return page

    def free(self, pages: Sequence[int]) -> None:
        """Take a text's pages back; those with whole blocks are kept for reuse."""
        for page in reversed(pages):  # its beginning is the last to be given up
            self._release(page)
            if self._keys.get(page):
                self._use(page)

    def compact(self) -> dict[int, int]:
        """Move the highest held pages to where there is room below; return old -> new."""
        moved = {}
        for old in sorted(self._held, reverse=True):
            if not self._low or self._low[0] > old:
                break
            new = self._hold_lowest()
            self._copy(old, new)
            self._release(old)
            moved[old] = new
        return moved

    # --- prefixes ---------------------------------------------------------------------------------

    def prefix_keys(self, token_ids: Sequence[int], known: list[bytes]) -> list[bytes]:
        """Return the keys of all whole blocks, going on from those already known."""
        keys = list(known)
        for at in range(len(keys) * BLOCK, len(token_ids) - BLOCK + 1, BLOCK):
            previous = keys[-1] if keys else self.version.to_bytes(8)
            block = array("q", token_ids[at : at + BLOCK]).tobytes()
            keys.append(hashlib.blake2b(previous + block, digest_size=16).digest())
        return keys

    def num_found(self, keys: Sequence[bytes]) -> int:
        """Return how many blocks of a prefix are in memory."""
        return next((i for i, key in enumerate(keys) if key not in self._page_of), len(keys))

    def copy_prefix(self, keys: Sequence[bytes]) -> list[int]:
        """Return new pages that hold these blocks, all of which are in memory.

        Fewer where there is no room for all, or only their own.
        """
        per_page = self.page_size // BLOCK
        for page in dict.fromkeys(self._page_of[key] for key in reversed(keys)):
            if page in self._kept:
                self._use(page)
        pages = []
        for first in range(0, len(keys), per_page):
            if not self.num_available:
                break
            last = min(first + per_page, len(keys)) - 1
            page = self._hold_lowest()
            if keys[last] not in self._page_of:  # the source itself had to make room
                self.free([page])
                break
            num_tokens = (last + 1 - first) * BLOCK
            self.moves.append(Move(self._page_of[keys[last]], page, num_tokens))
            pages.append(page)
        return pages

    def register(self, page: int, key: bytes) -> None:
        """Say that a held page now has the block of this key; the first page to have it serves."""
        if key not in self._page_of:
            self._page_of[key] = page
            self._keys.setdefault(page, []).append(key)

    def unregister(self, pages: Sequence[int]) -> None:
        """Have nobody find what these pages hold; the same text elsewhere is still found."""
        for page in pages:
            self._forget_page(page)

    def forget(self, version: int) -> None:
        """Give up everything kept: the weights have changed."""
        self.version = version
        self._page_of.clear()
        self._keys.clear()
        self._kept.clear()
        self._ages.clear()
        self._high = sorted(-page for page in self._low)

    # --- moving -----------------------------------------------------------------------------------

    def _release(self, page: int) -> None:
        self._held.remove(page)
        heapq.heappush(self._low, page)
        heapq.heappush(self._high, -page)

    def _use(self, page: int) -> None:
        self._clock += 1
        self._keep(page, self._clock)

    def _keep(self, page: int, age: int) -> None:
        self._kept[page] = age
        heapq.heappush(self._ages, (age, page))

    def _move_away(self, page: int) -> None:
        """Keep what a page holds elsewhere: above, or in place of what was used longest ago."""
        age = self._kept.pop(page)
        if len(self._low) > len(self._kept):
            room = self._highest_free()
        else:
            while self._kept.get(self._ages[0][1]) != self._ages[0][0]:
                if self._ages[0] == (age, page):  # it is the one used longest ago
                    return self._forget_page(page)
                heapq.heappop(self._ages)
            room = heapq.heappop(self._ages)[1]
            del self._kept[room]
        self._copy(page, room)
        self._keep(room, age)

    def _highest_free(self) -> int:
        while -self._high[0] in self._held or -self._high[0] in self._kept:
            heapq.heappop(self._high)
        return -heapq.heappop(self._high)

    def _copy(self, source: int, destination: int) -> None:
        self._forget_page(destination)
        self.moves.append(Move(source, destination, self.page_size))
        keys = self._keys.pop(source, [])
        if keys:
            self._keys[destination] = keys
        for key in keys:
            self._page_of[key] = destination

    def _forget_page(self, page: int) -> None:
        for key in self._keys.pop(page, []):
            del self._page_of[key]
