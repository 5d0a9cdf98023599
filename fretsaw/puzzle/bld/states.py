"""The parent's states before any layer, on fixed text: what every layer's training starts from.

Asked for in the order of the layers they are walked on; in any other they start again from the
embeddings. Either way the states are the same, so that layers are independent tasks.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.data import loader
from fretsaw.model.decoder import Decoder
from fretsaw.model.place import Place
from fretsaw.puzzle.library.ranking import BATCH_ROWS, calibration_rows
from fretsaw.puzzle.library.replay import Frontier
from fretsaw.puzzle.settings import BldSettings


class Walk:
    """The parent's states on fixed rows, before the layer that was asked for last."""

    def __init__(self, parent: Decoder, token_ids: Int[Tensor, "rows seq"]):
        self.parent, self.token_ids = parent, token_ids
        self._frontier: Frontier | None = None

    @torch.no_grad()
    def before(self, layer: int) -> Frontier:
        """Return the frontier before a layer; it holds until the next call."""
        if self._frontier is None or self._frontier.at > Place(layer):
            self._frontier = Frontier(self.parent, self.token_ids, BATCH_ROWS)
        self._frontier.walk_to(Place(layer))
        return self._frontier


class Text:
    """The texts of block distillation as the parent sees them: to train, to repair, held out.

    Training text is cut into chunks whose states fit `frontier_mib`; a batch is a function of
    (seed, layer, step) alone.
    """

    def __init__(self, parent: Decoder, corpus: Path, settings: BldSettings, seed: int):
        self.parent, self.settings, self.seed = parent, settings, seed
        self.context = parent.context(1, settings.seq_len)
        self.tokens = loader.read_tokens(corpus / "train.npy")
        device = str(parent.device)
        self.calibration = Walk(
            parent,
            calibration_rows(corpus, settings.repair_tokens, settings.seq_len, device),
        )
        heldout = loader.first_rows(
            corpus / "heldout.npy", settings.seq_len, settings.heldout_tokens
        )
        if len(heldout) < 2:
            raise ValueError(
                f"{corpus}: one held-out row of {settings.seq_len} tokens; two are needed, one to "
                "choose and one to report; give more text or lower seq_len"
            )
        self.heldout = Walk(parent, torch.from_numpy(heldout)[:, :-1].to(device))
        batch_mib = settings.batch_tokens * parent.config.hidden_size * 4 / 2**20
        most = max(1, int(settings.frontier_mib / batch_mib))
        num_chunks = -(-settings.num_steps // most)
        self.steps_per_chunk = -(-settings.num_steps // num_chunks)
        self._chunk, self._walk = -1, self.heldout

    def batch(self, layer: int, step: int) -> Float[Tensor, "batch seq hidden"]:
        """Return the parent's states before a layer on the rows of a step."""
        chunk, number = divmod(step, self.steps_per_chunk)
        seq, rows = self.settings.seq_len, self.settings.batch_tokens // self.settings.seq_len
        if chunk != self._chunk:
            num_rows = rows * self.steps_per_chunk
            ids = loader.batch(
                self.tokens, seed=self.seed, step=chunk, batch_size=num_rows, seq_len=seq
            )
            self._chunk = chunk
            self._walk = Walk(self.parent, torch.from_numpy(ids[:, :-1]).to(self.parent.device))
        states = self._walk.before(layer).states
        order = np.random.default_rng([self.seed, layer, chunk]).permutation(len(states))
        return states[torch.from_numpy(order[number * rows : (number + 1) * rows])]
