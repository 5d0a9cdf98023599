"""Decoding steps recorded once a size and replayed: CUDA graphs, so that launches cost nothing.

A step is padded up to powers of two in rows and span; each such size is recorded at its first use.
What is padding writes to a page of its own and is read by nobody. On a CPU there
is nothing to record: the padded step is computed as it is, which is how the padding is tested.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fretsaw.engine.runner import Decoding, Runner, Step


@dataclass
class Recording:
    """A step's tensors at fixed addresses, and what computes the logits from them."""

    step: Step
    replay: Callable[[], Tensor]


class DecodeGraphs:
    """The recordings of one runner; they end with its weights."""

    def __init__(self, runner: Runner, scratch_page: int):
        self._runner, self._scratch_page = runner, scratch_page
        self._recordings: dict[tuple[int, int], Recording] = {}
        self._pool = torch.cuda.graph_pool_handle() if runner.device.type == "cuda" else None

    def logits(self, step: Step) -> Float[Tensor, "rows vocab"]:
        """Return the logits of a step that only decodes; valid until the next call."""
        decoding = step.decoding
        assert decoding is not None, "the step decodes nothing"
        assert not step.pieces, "the step reads prompts"
        size = (
            _power_of_two(decoding.num_rows),
            min(_power_of_two(decoding.span), self._scratch_page),  # of those before it
        )
        padded = pad(step, *size, scratch_page=self._scratch_page)
        if size not in self._recordings:
            self._recordings[size] = self._record(padded)
        recording = self._recordings[size]
        for target, source in zip(_tensors(recording.step), _tensors(padded), strict=True):
            target.copy_(source)
        return recording.replay()[: decoding.num_rows]

    def forget(self) -> None:
        """Drop the recordings: the weights they read are no longer the runner's."""
        self._recordings.clear()

    def _record(self, step: Step) -> Recording:
        runner = self._runner

        def compute() -> Tensor:
            return runner.logits(runner.hidden(step))

        if runner.device.type != "cuda":
            return Recording(step, compute)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(runner.device):  # streams are of the current device, which may be 0
            warming = torch.cuda.Stream()
            warming.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warming):
                compute()
            torch.cuda.current_stream().wait_stream(warming)
            with torch.cuda.graph(graph, pool=self._pool):
                logits = compute()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return Recording(step, replay)


def pad(step: Step, num_rows: int, span: int, *, scratch_page: int) -> Step:
    """Return a decoding step with more rows, which own no pages, and more pages in its span."""
    decoding = step.decoding
    assert decoding is not None, "only what decodes is padded"
    rows, beyond = num_rows - decoding.num_rows, span - decoding.span
    return Step(
        num_tokens=num_rows,
        token_ids=F.pad(step.token_ids, (0, rows)),
        rotation=F.pad(step.rotation, (0, 0, 0, 0, 0, rows), value=1.0),
        page=F.pad(step.page, (0, rows), value=scratch_page),
        offset=F.pad(step.offset, (0, rows)),
        decoding=Decoding(
            num_rows=num_rows,
            span=span,
            reader=F.pad(decoding.reader, (0, beyond)),
            part_of=F.pad(decoding.part_of, (0, beyond)),
            masks={
                heads: F.pad(mask, (0, 0, 0, 0, 0, beyond * heads), value=True)
                for heads, mask in decoding.masks.items()
            },
            is_alone=False,  # also where nothing was to be padded: a recording serves all
        ),
        pieces=(),
    )


def _power_of_two(number: int) -> int:
    """Return the smallest power of two from `number` on."""
    return 1 << (number - 1).bit_length()


def _tensors(step: Step) -> list[Tensor]:
    assert step.decoding is not None
    owners = [step, step.decoding]
    found = [getattr(owner, field.name) for owner in owners for field in fields(owner)]
    return [value for value in found if isinstance(value, Tensor)] + [*step.decoding.masks.values()]
