"""A checkpoint that is evaluated in this process."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from fretsaw.chat.format import chat_format
from fretsaw.chat.reasoning import Mode
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.grade.grader import Asks
from fretsaw.model.decoder import Decoder
from fretsaw.rollout.rows import Row
from fretsaw.tasks.answers import answer
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.prompt import PLAIN_MODES, manner, prompt_of

MAX_BATCH = 128


class LocalModel:
    """A decoder with its tokenizer and its chat format; the engine writes its answers."""

    def __init__(self, decoder: Decoder, folder: Path, judge: Asks | None = None):
        self.decoder, self.folder, self._judge = decoder, folder, judge

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's; held-out text alone needs none."""
        return Tokenizer.from_folder(self.folder)

    @cached_property
    def format(self) -> ChatFormat | None:
        """How problems are put to it as a chat; None: as text to continue."""
        return chat_format(self.folder, self.tokenizer)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that it can be asked for."""
        return self.format.modes if self.format else PLAIN_MODES

    @property
    def manner(self) -> str:
        """How problems are put to it, for the screen."""
        return manner(self.format)

    def answers(
        self,
        problems: Sequence[Problem],
        mode: Mode,
        sampling: Sampling,
        *,
        num_samples: int,
        first_group: int,
        on_answer: Callable[[int], None],
    ) -> list[Row]:
        """Return graded answers, problem by problem; `on_answer` is told how many have ended."""
        prompts = [prompt_of(p, mode, self.tokenizer, self.format) for p in problems]
        return answer(
            Engine(self.decoder, max_batch=MAX_BATCH),
            self.tokenizer,
            prompts,
            sampling,
            group_size=num_samples,
            first_group=first_group,
            judge=self._judge,
            on_token=lambda num_ended, num_tokens: on_answer(num_ended),
        )
