"""What each step computes: who decodes, whose prompt goes on, who is let in, who must wait.

Whoever decodes does so in every step, so that nobody's text stalls; beside them prompts are read,
in pieces of so many tokens a step. Where memory runs out, the sequence that came last gives its
pages back and waits; it begins again from what of its text is still in memory.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice

from fretsaw.engine.pages import BLOCK, PagePool
from fretsaw.engine.sequence import SequenceState, Slice


class Scheduler:
    """Waiting and running sequences, and the pages they hold."""

    def __init__(
        self,
        pool: PagePool,
        *,
        max_batch: int,
        chunk_tokens: int,
        reuses_prefixes: bool = True,
        mixes: bool = True,
    ):
        self.pool, self.max_batch, self.chunk_tokens = pool, max_batch, chunk_tokens
        self.reuses_prefixes, self.mixes = reuses_prefixes, mixes
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []  # in order of arrival
        self.num_preemptions = 0
        self.num_reused_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether anything is left to compute."""
        return bool(self.waiting or self.running)

    # --- deciding ---------------------------------------------------------------------------------

    def schedule(self) -> list[Slice]:
        """Return what to compute next, decoding sequences first; their pages are allocated.

        Where `mixes` is false a step is a piece of one prompt, or else whoever decodes.
        """
        decoding: list[Slice] = []
        prefilling: list[Slice] = []
        if self.mixes:
            self._decode(decoding)
        self._prefill(prefilling, decoding)
        if not self.mixes and not prefilling:
            self._decode(decoding)
        if self.pool.span > 2 * self.pool.num_held:
            moved = self.pool.compact()
            for sequence in self.running:
                sequence.pages = [moved.get(page, page) for page in sequence.pages]
        return decoding + prefilling

    def _decode(self, decoding: list[Slice]) -> None:
        for sequence in list(self.running):
            if sequence.is_running and sequence.num_pending == 1:
                self._take(sequence, 1, decoding, decoding)

    def _prefill(self, prefilling: list[Slice], decoding: list[Slice]) -> None:
        budget = self.chunk_tokens
        for sequence in list(self.running):
            if budget > 0 and sequence.is_running and sequence.num_pending > 1:
                budget -= self._take(sequence, budget, prefilling, decoding)
                budget = budget if self.mixes else 0
        num_reserved = 0
        for sequence in list(islice(self.waiting, self.max_batch)):
            if budget <= 0 or len(self.running) + num_reserved >= self.max_batch:
                break
            if self._shares_with(sequence, prefilling):
                num_reserved += 1
                continue
            if not self._admit(sequence):
                break
            budget -= self._take(sequence, budget, prefilling, decoding)
            budget = budget if self.mixes else 0

    def _take(
        self, sequence: SequenceState, budget: int, into: list[Slice], decoding: list[Slice]
    ) -> int:
        """Schedule up to `budget` tokens of a sequence; return how many."""
        length = min(sequence.num_pending, budget)
        num_pages = -(-(sequence.num_computed + length) // self.pool.page_size)
        while len(sequence.pages) < num_pages:
            if self.pool.num_available:
                sequence.pages.append(self.pool.allocate())
                continue
            last = self.running[-1]
            self._preempt(last)
            for slices in (into, decoding):
                slices[:] = [slice for slice in slices if slice.sequence is not last]
            if last is sequence:
                return 0
        into.append(Slice(sequence, sequence.num_computed, length))
        return length

    def _admit(self, sequence: SequenceState) -> bool:
        """Let a waiting sequence in if its text so far fits in memory beside the others."""
        num_tokens = len(sequence.token_ids)
        wanted = min(num_tokens // self.pool.page_size + 1, self.pool.num_pages)
        if self.pool.num_available < wanted:
            assert self.running, "a lone request was admitted that memory cannot hold"
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.is_running = True
        if self.reuses_prefixes and not sequence.request.prompt_logprobs:
            # The last token is always computed: the next one's logits come of it.
            sequence.keys = self.pool.prefix_keys(sequence.token_ids[:-1], sequence.keys)
            found = self.pool.num_found(sequence.keys)
            sequence.pages = self.pool.copy_prefix(sequence.keys[:found])
            held = len(sequence.pages) * self.pool.page_size
            sequence.num_computed = min(found * BLOCK, held)
            self.num_reused_tokens += sequence.num_computed
        return True

    def _shares_with(self, sequence: SequenceState, others: Iterable[Slice]) -> bool:
        """Whether a sequence had better wait a step for a beginning that is being computed now."""
        if not self.reuses_prefixes or sequence.request.prompt_logprobs:
            return False
        sequence.keys = self.pool.prefix_keys(sequence.token_ids[:-1], sequence.keys)
        found = self.pool.num_found(sequence.keys)
        if found == len(sequence.keys):
            return False
        return any(
            found < len(other.sequence.keys) and other.sequence.keys[found] == sequence.keys[found]
            for other in others
        )

    # --- settling ---------------------------------------------------------------------------------

    def settle(self, slices: Iterable[Slice]) -> None:
        """Count what a step has computed, and let others find the blocks that are now whole."""
        for slice in slices:
            sequence = slice.sequence
            sequence.num_computed = slice.start + slice.length
            if not self.reuses_prefixes or sequence.num_computed // BLOCK == slice.start // BLOCK:
                continue
            computed = sequence.token_ids[: sequence.num_computed]
            sequence.keys = self.pool.prefix_keys(computed, sequence.keys)
            for block in range(slice.start // BLOCK, sequence.num_computed // BLOCK):
                page = sequence.pages[block * BLOCK // self.pool.page_size]
                self.pool.register(page, sequence.keys[block])

    def finish(self, sequence: SequenceState) -> None:
        """Take a sequence out, wherever it is."""
        if not sequence.is_running:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._release(sequence)

    def restart(self, version: int) -> None:
        """Send everybody back to the beginning of their text: the weights have changed."""
        for sequence in reversed(self.running):
            self._release(sequence)
            self.waiting.appendleft(sequence)
        self.running.clear()
        for sequence in self.waiting:
            sequence.keys = []
            if not sequence.has_spoken:
                sequence.prompt_logprobs = []
        self.pool.forget(version)

    def _preempt(self, sequence: SequenceState) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: SequenceState) -> None:
        self.pool.free(sequence.pages)
        sequence.pages, sequence.num_computed, sequence.is_running = [], 0, False
