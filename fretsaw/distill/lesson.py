"""What a student learns from: the gradient of a step's text, and figures of text it never reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from fretsaw.data import loader
from fretsaw.distill.objective import Objective, heldout_figures, losses
from fretsaw.distill.settings import TrainSettings
from fretsaw.distill.teacher import CachedTeacher, teacher_of_rows
from fretsaw.model.decoder import Decoder
from fretsaw.stage.execute import StageRun


@dataclass(frozen=True)
class Lesson:
    """A student, its teacher and the text, which each phase cuts into rows of its own length."""

    student: Decoder
    teacher: Decoder | CachedTeacher | None
    objective: Objective
    tokens: loader.Tokens  # to train on
    heldout: Path
    settings: TrainSettings
    run: StageRun

    def add_gradient(self, seq_len: int, step: int) -> dict[str, float]:
        """Add the gradient of a step's loss; return its terms in nats or 1 - cos a token.

        Every micro-batch's sum is divided by the step's number of tokens in all processes, so that
        neither the cut into micro-batches nor the number of processes matters.
        """
        num_tokens, sums = self.settings.batch_tokens, {}
        for windows, rows in self.micro_batches(seq_len, step):
            taught = teacher_of_rows(self.teacher, windows, self.run.device)
            loss, terms = losses(self.student, taught, rows, self.objective, self.run.dtype)
            (loss / num_tokens).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        return {name: value / num_tokens for name, value in self.run.peers.total(sums).items()}

    def micro_batches(
        self, seq_len: int, step: int
    ) -> Iterator[tuple[list[int], Int64[Tensor, "rows seq_plus_1"]]]:
        """Yield this process's rows of a step, and which windows of the text they are.

        A step's windows are a function of (seed, step), whatever a rollback threw away.
        """
        num_rows = self.settings.batch_tokens // seq_len
        available = loader.num_windows(self.tokens, seq_len)
        windows = loader.order(available, num_rows, seed=self.run.seed, step=step)
        own = windows[self.run.peers.share(num_rows, "batch_tokens")]
        micro_rows = self.settings.micro_batch_tokens // seq_len
        for at in range(0, len(own), micro_rows):
            self.run.check_sooner()
            micro = own[at : at + micro_rows]
            rows = torch.from_numpy(loader.gather(self.tokens, micro, seq_len))
            yield micro, rows.to(self.run.device)

    def measure(self, seq_len: int) -> dict[str, float]:
        """Return the loss on the first held-out rows and, with a teacher, the KL from it."""
        run, settings = self.run, self.settings
        rows = loader.first_rows(self.heldout, seq_len, settings.heldout_tokens)
        return heldout_figures(
            self.student,
            self.teacher,
            torch.from_numpy(rows).to(run.device),
            settings.micro_batch_tokens // seq_len,
            run.dtype,
            run.peers,
        )
