"""The embedded engine: continuous batching over paged key-value memory, on one device.

A step is three verbs: the scheduler decides what to compute, the runner computes it, the scheduler
settles it. Log-probabilities are of the raw distribution at temperature 1, whatever was sampled.
The engine is not thread-safe: one thread owns it.
"""

import time
from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fretsaw.engine.graphs import DecodeGraphs
from fretsaw.engine.isolation import isolated
from fretsaw.engine.outcome import Outcome, speak, tell_prompts
from fretsaw.engine.page_memory import keep_freed_memory, num_pages_for
from fretsaw.engine.pages import BLOCK, PagePool
from fretsaw.engine.runner import Runner
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.scheduler import Scheduler
from fretsaw.engine.sequence import Event, Request, SequenceState, Slice, whole
from fretsaw.engine.stats import Stats
from fretsaw.engine.weights import prepare
from fretsaw.model.decoder import Decoder

PAGE_SIZE = 32  # tokens; on a CPU, smaller pages cost more calls and larger ones more padding


class Engine:
    """Generate from a decoder whose weights may be exchanged in place.

    It decodes with a copy of the decoder's matrices, laid out for the purpose; after a change of
    the decoder's own, `load_weights` takes them over.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_batch: int = 64,
        memory_mib: float | None = None,
        chunk_tokens: int = 512,
        page_size: int = PAGE_SIZE,
        reuses_prefixes: bool = True,
        batch_invariant: bool = False,
        cuda_graphs: bool = False,
        fp8: bool = False,
    ):
        """Lay out the weights and the memory; `memory_mib` None takes what the machine can spare.

        `max_batch` sequences run at most; `chunk_tokens` of prompts are read a step at most.
        `batch_invariant` pays in speed for bits that do not depend on what else is in the batch: a
        prompt is read by itself, and decoding always has `max_batch` rows. (Not so where memory
        runs out: what a preempted sequence had written is then read like a prompt.) `cuda_graphs`
        replays decoding steps instead of launching them.
        """
        for name, value in (("max_batch", max_batch), ("chunk_tokens", chunk_tokens)):
            if value < 1:
                raise ValueError(f"engine: {name} {value}: nothing could ever run; give at least 1")
        if page_size < 1 or page_size % BLOCK:
            raise ValueError(f"engine: page_size {page_size}: give a multiple of {BLOCK}")
        if batch_invariant and cuda_graphs:
            raise ValueError(
                "engine: batch_invariant and cuda_graphs exclude one another, since graphs are "
                "padded to sizes that depend on the batch; drop one"
            )
        if decoder.device.type == "cpu":
            keep_freed_memory()
        self.decoder, self._fp8 = decoder.eval(), fp8
        weights = prepare(decoder, fp8=fp8)  # before what is left of the memory is measured
        num_pages = num_pages_for(decoder, max_batch, page_size, memory_mib)
        self._pool = PagePool(num_pages, page_size)
        num_scratch = int(cuda_graphs)  # a page that padding may write to
        self._runner = Runner(decoder, num_pages + num_scratch, page_size, weights)
        self._graphs = DecodeGraphs(self._runner, num_pages) if cuda_graphs else None
        self._scheduler = Scheduler(
            self._pool,
            max_batch=max_batch,
            chunk_tokens=chunk_tokens,
            reuses_prefixes=reuses_prefixes and not batch_invariant,
            mixes=not batch_invariant,
        )
        self._is_batch_invariant = batch_invariant
        self._sequences: dict[int, SequenceState] = {}
        self._missed: list[Event] = []  # made while somebody else listened
        self._num_added = 0
        self._stats = Stats()
        self._is_awake = True

    # --- requests ---------------------------------------------------------------------------------

    def add(self, request: Request) -> int:
        """Queue a request and return its id; raise ValueError if it could never run."""
        number = self._num_added
        self._check(request, number)
        self._num_added += 1
        sequence = SequenceState(number, request, list(request.token_ids))
        self._sequences[number] = sequence
        self._scheduler.waiting.append(sequence)
        return number

    def _check(self, request: Request, number: int) -> None:
        """Raise where a request can never run: empty, unknown tokens, beyond context or memory."""
        prompt, config = request.token_ids, self.decoder.config
        if not prompt:
            raise ValueError(f"request {number}: an empty prompt; give at least one token")
        self._check_ids(prompt, number)
        asked = f"{len(prompt)} prompt tokens and {request.sampling.max_tokens} to generate"
        longest, limit = len(prompt) + request.sampling.max_tokens, config.max_position_embeddings
        if longest > limit:
            raise ValueError(
                f"request {number}: {asked}, but the model's context is {limit}; "
                "shorten one of them"
            )
        room = self._pool.num_pages * self._pool.page_size
        if longest > room:
            raise ValueError(
                f"request {number}: {asked}, but key-value memory holds {room} tokens; "
                "shorten one of them, or give the engine more memory"
            )

    def _check_ids(self, token_ids: Sequence[int], number: int) -> None:
        vocab_size = self.decoder.config.vocab_size
        try:
            array("q", token_ids)
        except (TypeError, OverflowError) as error:
            raise ValueError(
                f"request {number}: token ids must be whole numbers, and the model knows 0 to "
                f"{vocab_size - 1}; use its own tokenizer"
            ) from error
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            raise ValueError(
                f"request {number}: token ids from {min(token_ids)} to {max(token_ids)}, but the "
                f"model knows 0 to {vocab_size - 1}; use its own tokenizer"
            )

    def abort(self, request: int) -> None:
        """Drop a request wherever it is, its pages with it; one that has ended is ignored."""
        self._missed = [event for event in self._missed if event.request != request]
        sequence = self._sequences.pop(request, None)
        if sequence is not None:
            self._scheduler.finish(sequence)

    def force(self, request: int, token_ids: Sequence[int]) -> None:
        """Append tokens to a request as if it had generated them; they make no events.

        They count against `max_tokens`; at least one token must be left to generate after them.
        """
        sequence = self._sequences.get(request)
        if sequence is None:
            raise ValueError(f"request {request}: not running; tokens can be forced until it ends")
        self._check_ids(token_ids, request)
        left = sequence.request.sampling.max_tokens - sequence.num_generated
        if len(token_ids) >= left:
            raise ValueError(
                f"request {request}: {len(token_ids)} tokens to force, but {left} are left of "
                "max_tokens and one must follow; raise max_tokens"
            )
        sequence.token_ids += token_ids

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running, or its tokens have not been heard of."""
        return bool(self._missed) or self._scheduler.has_work

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute what is scheduled next; return the tokens that came of it.

        What goes wrong ends the requests at fault, each with an event that says why; nothing of a
        step is settled before it is computed. What it raises means that the engine is lost: its
        device is, or what it remembers of its pages is not what they hold.
        """
        assert self._is_awake, "the engine sleeps; call wake() first"
        missed, self._missed = self._missed, []
        slices = self._scheduler.schedule()
        if not slices:
            return missed
        started = time.perf_counter()
        self._runner.move(self._pool.moves)
        self._pool.moves.clear()
        outcomes = isolated(self._compute, slices, self.decoder.device)
        good = [slice for slice, of in zip(slices, outcomes, strict=True) if of.fault is None]
        self._scheduler.settle(good)
        settled = map(self._settle, slices, outcomes)
        events = [event for event in settled if event is not None]
        self._count(slices, time.perf_counter() - started)
        return missed + events

    def pretend_computed(self) -> None:
        """Take all but the last token of waiting requests as computed already, for timing alone."""
        for sequence in self._scheduler.waiting:
            sequence.num_computed = len(sequence.token_ids) - 1

    def touch(self, num_pages: int) -> None:
        """Write the first pages once, for timing alone.

        Memory that serves has been written before; what never was takes time to write and none to
        read. Pages are given out from the first.
        """
        for tensor in (*self._runner.keys, *self._runner.values):
            tensor[:num_pages].fill_(0.01)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        is_enough: Callable[[int], bool] = lambda index: False,
    ) -> Generator[Event, None, None]:
        """Yield tokens as they are made, until all requests have ended; each one's are in order.

        Several may be listened to in turn: what one's steps make of another's is kept for it. A
        request that fails ends with an event that says why, and the others go on; `whole` is for
        those who need all. After each event `is_enough` is asked whether to drop its request.
        """
        for i, request in enumerate(requests):
            self._check(request, i)
        index_of: dict[int, int] = {}
        try:
            for i, request in enumerate(requests):
                index_of[self.add(request)] = i
            while index_of:
                came = self.step()
                self._missed += [event for event in came if event.request not in index_of]
                for event in came:
                    if event.request not in index_of:
                        continue
                    index = index_of[event.request]
                    if event.finish_reason is not None:
                        del index_of[event.request]
                    yield replace(event, request=index)
                    if event.request in index_of and is_enough(index):
                        self.abort(event.request)
                        del index_of[event.request]
        finally:
            for left in index_of:  # the caller stopped listening
                self.abort(left)

    def _num_padded(self, slices: Sequence[Slice]) -> int:
        if not self._is_batch_invariant:
            return 0
        is_prompt = slices[0].sequence.num_pending > 1 or not slices[0].start
        return self._scheduler.chunk_tokens if is_prompt else self._scheduler.max_batch

    # --- a step -----------------------------------------------------------------------------------

    def _compute(self, slices: Sequence[Slice]) -> list[Outcome]:
        """Return what comes of every slice; only their own pages are written to."""
        runner = self._runner
        step = runner.lay_out(slices, self._pool.span, padded_to=self._num_padded(slices))
        if self._graphs is not None and all(slice.is_decoding for slice in slices):
            return speak(self._graphs.logits(step).float(), slices)
        hidden = runner.hidden(step)
        outcomes = [Outcome() for _ in slices]
        if not all(slice.is_decoding for slice in slices):
            tell_prompts(outcomes, slices, hidden[: step.num_tokens], runner.logits)
        speaking = [i for i, slice in enumerate(slices) if slice.is_last]
        if speaking:
            lasts = torch.tensor([slice.length for slice in slices]).cumsum(0) - 1
            rows = lasts[speaking].to(hidden.device)
            if self._is_batch_invariant:
                rows = F.pad(rows, (0, self._scheduler.max_batch - len(rows)))
            logits = runner.logits(hidden[rows])[: len(speaking)].float()
            for i, said in zip(speaking, speak(logits, [slices[i] for i in speaking]), strict=True):
                outcomes[i].spoken = said.spoken
                outcomes[i].fault = outcomes[i].fault or said.fault
        return outcomes

    def _settle(self, slice: Slice, outcome: Outcome) -> Event | None:
        """Take over what came of a slice; return what is to be told of it."""
        sequence, request = slice.sequence, slice.sequence.request
        if outcome.fault is not None:
            self._pool.unregister(sequence.pages)  # nobody may go on from what it has written
            return self._end(sequence, Event(sequence.id, None, 0.0, "error", error=outcome.fault))
        sequence.prompt_logprobs += outcome.prompt_logprobs
        if outcome.spoken is None:
            return None
        token_id, logprob, reason = outcome.spoken.token_id, outcome.spoken.logprob, None
        if request.sampling.max_tokens == 0:
            token_id, logprob, reason = None, 0.0, "length"
        else:
            sequence.token_ids.append(token_id)
            if token_id in request.stop_token_ids:
                reason = "stop"
            elif sequence.num_generated >= request.sampling.max_tokens:
                reason = "length"
        prompt = None
        if request.prompt_logprobs and not sequence.has_spoken:
            prompt = tuple(sequence.prompt_logprobs)
        sequence.has_spoken = True
        event = Event(sequence.id, token_id, logprob, reason, outcome.spoken.top, prompt)
        return event if reason is None else self._end(sequence, event)

    def _end(self, sequence: SequenceState, event: Event) -> Event:
        self._scheduler.finish(sequence)
        del self._sequences[sequence.id]
        return event

    def _count(self, slices: Sequence[Slice], seconds: float) -> None:
        """Share a step's time between decoding and prompts by their tokens."""
        decoded = sum(slice.length == 1 and slice.start > 0 for slice in slices)
        read = sum(slice.length for slice in slices) - decoded
        stats = self._stats
        stats.decode_tokens += decoded
        stats.prefill_tokens += read
        stats.decode_s += seconds * decoded / (decoded + read)
        stats.prefill_s += seconds * read / (decoded + read)

    # --- the rest of the contract -----------------------------------------------------------------

    @torch.inference_mode()
    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probability of every token after the first, given those before it."""
        request = Request(tuple(token_ids), Sampling(max_tokens=0), prompt_logprobs=True)
        (event,) = whole(self.generate([request]))
        return [token.logprob for token in event.prompt_logprobs or ()]

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Overwrite weights in place; names and shapes must be the decoder's own.

        Without tensors the decoder's weights are taken as they now are. Whatever runs goes on with
        the new weights, from the beginning of its text; nothing computed with the old is reused.
        A weight that is refused leaves those before it in place, and the engine decodes with them.
        """
        own = dict(self.decoder.named_parameters())
        try:
            for name, tensor in named_tensors:
                if name not in own:
                    raise ValueError(f"{name}: the model has no such weight")
                if tensor.shape != own[name].shape:
                    raise ValueError(
                        f"{name}: shape {tuple(tensor.shape)}, but the model's is "
                        f"{tuple(own[name].shape)}; send the weights of this model"
                    )
                own[name].detach().copy_(tensor)
        finally:
            self._runner.weights = prepare(self.decoder, fp8=self._fp8)
            if self._graphs is not None:
                self._graphs.forget()
            self._scheduler.restart(version)
            self._stats.weight_version = version

    def sleep(self) -> None:
        """Refuse work until `wake`, and give up what is kept of earlier texts."""
        assert not self.has_work, "requests are running; let them end or abort them"
        self._is_awake = False
        self._pool.forget(self._pool.version)

    def wake(self) -> None:
        """Accept work again."""
        self._is_awake = True

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the model's own, and the token that begins a text.

        Documents follow one another in plain text, so the beginning of the next one is an end too.
        """
        config = self.decoder.config
        bos = () if config.bos_token_id is None else (config.bos_token_id,)
        return tuple(dict.fromkeys((*config.eos_token_ids, *bos)))

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together, at most."""
        return self.decoder.config.max_position_embeddings

    def stats(self) -> Stats:
        """Return counts and seconds so far, and how full the engine is."""
        stats, scheduler = replace(self._stats), self._scheduler
        stats.prefix_hit_tokens = scheduler.num_reused_tokens
        stats.num_preemptions = scheduler.num_preemptions
        stats.num_waiting, stats.num_running = len(scheduler.waiting), len(scheduler.running)
        stats.pages_used, stats.pages_total = self._pool.num_held, self._pool.num_pages
        return stats
