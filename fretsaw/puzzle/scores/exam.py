"""Accuracy as a score: the problems of a task, answered by a changed model through the engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fretsaw.chat.format import chat_format
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.model.decoder import Decoder
from fretsaw.puzzle.library.alternatives import Change
from fretsaw.puzzle.settings import ScoreSettings
from fretsaw.stage.progress import say
from fretsaw.tasks.answers import answer
from fretsaw.tasks.prompt import manner, prompts_by_mode
from fretsaw.tasks.task import load_problems

MAX_BATCH = 128


class Exam:
    """Problems put to the parent once, then to every changed model."""

    def __init__(
        self, parent: Decoder, folder: Path, settings: ScoreSettings, file: Path | None, seed: int
    ):
        self.parent, self.settings, self.seed = parent, settings, seed
        self.tokenizer = Tokenizer.from_folder(folder)
        problems = load_problems(settings.task, settings.num_problems, seed=seed, file=file)
        format = chat_format(folder, self.tokenizer)
        say(f"score: {manner(format)}")
        by_mode = prompts_by_mode(problems, self.tokenizer, format)
        self.prompts = by_mode.get(settings.mode) or next(iter(by_mode.values()))
        self.parent_right = self._right(parent)

    def lost(self, change: Change) -> Float[np.ndarray, " problems"]:
        """Return the parent's grade less the changed model's, problem by problem."""
        config = self.parent.config
        layers = [change.blocks.get(i, block) for i, block in enumerate(self.parent.model.layers)]
        shapes = (change.shapes.get(i, shape) for i, shape in enumerate(config.blocks))
        child = self.parent.with_blocks(replace(config, blocks=tuple(shapes)), layers)
        return self.parent_right - self._right(child)

    def _right(self, model: Decoder) -> Float[np.ndarray, " problems"]:
        rows = answer(
            Engine(model, max_batch=MAX_BATCH),
            self.tokenizer,
            self.prompts,
            Sampling(max_tokens=self.settings.max_new_tokens, seed=self.seed),
        )
        return np.array([row.correct * row.is_finished for row in rows])
