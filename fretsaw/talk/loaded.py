"""A checkpoint in the hand: the network and its tokenizer, ready to continue text or to chat."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fretsaw.chat.format import chat_format, require_chat_format, text_ends
from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import CLOSE_TAG, OPEN_TAG, Mode
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.toggle import Toggle
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.hub import resolve
from fretsaw.engine.engine import Engine
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request, whole
from fretsaw.engine.text_stream import TextStream
from fretsaw.model.decoder import Decoder
from fretsaw.training.precision import check_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class LoadedModel:
    """A decoder, the tokenizer that belongs to it, and how it is told to reason or not.

    Settings are a `Sampling`, or its fields by name: `model.generate("Once", temperature=0.7)`.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    format: ChatFormat | None = None  # None: it only continues text

    @classmethod
    def from_checkpoint(
        cls,
        name_or_path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        needs_chat: bool = False,
    ) -> "LoadedModel":
        """Load a folder or a Hub id; one without a chat format is refused where it is needed.

        `device` auto is the accelerator if there is one. `dtype` auto is bf16 where the checkpoint
        is stored in 16 bits and the device multiplies bf16 itself, else fp32.
        """
        path = resolve(name_or_path)
        checkpoint.check(path, needs_tokenizer=True)
        check_device(device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            is_short = checkpoint.read_dtype(path) in ("bf16", "fp16")
            dtype = "bf16" if is_short and _multiplies_bf16(device) else "fp32"
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: unknown; use auto, {', '.join(DTYPES)}")
        tokenizer = Tokenizer.from_folder(path)
        read = require_chat_format if needs_chat else chat_format
        format = read(path, tokenizer)
        decoder = checkpoint.load_served(path, device=device, dtype=DTYPES[dtype])
        return cls(decoder, tokenizer, format)

    @property
    def toggle(self) -> Toggle:
        """How it is told whether to reason."""
        return "none" if self.format is None else self.format.toggle

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text or a turn, whichever of the checkpoint's files names them."""
        return text_ends(self.tokenizer, self.format)

    @cached_property
    def engine(self) -> Engine:
        """What decodes; it keeps what earlier texts have in common with later ones."""
        return Engine(self.decoder)

    def generate(self, prompt: str, sampling: Sampling | None = None, **changes: Any) -> str:
        """Return the continuation of a prompt."""
        return "".join(self.stream(prompt, sampling, **changes))

    def stream(
        self, prompt: str, sampling: Sampling | None = None, **changes: Any
    ) -> Iterator[str]:
        """Yield the continuation piece by piece, never half a character."""
        return self._stream(self.text_ids(prompt), replace(sampling or Sampling(), **changes))

    def chat(
        self,
        messages: Sequence[Message],
        mode: Mode = "on",
        sampling: Sampling | None = None,
        **changes: Any,
    ) -> Generator[str, None, None]:
        """Yield the answer to a conversation piece by piece, its reasoning with its tags included.

        Raises ValueError for a model that has no chat format.
        """
        format, settings = self.chat_format, replace(sampling or Sampling(), **changes)
        token_ids = format.prompt_ids(messages, mode)
        return self._stream(token_ids, settings, format.opening(mode))

    @property
    def chat_format(self) -> ChatFormat:
        """How conversations are written. Raises ValueError for a model that has no way."""
        if self.format is None:
            raise ValueError(
                "chat: the checkpoint has no chat template, so this is no chat model; tune it with "
                "`fretsaw sft` first, or continue plain text with `fretsaw generate`"
            )
        return self.format

    def text_ids(self, prompt: str) -> tuple[int, ...]:
        """Return the ids of a plain prompt, with what begins a text."""
        return self.tokenizer.text_ids(prompt)

    def request(self, token_ids: tuple[int, ...], sampling: Sampling) -> Request:
        """Return what to ask of the engine; an answer ends where the context does.

        Raises ValueError where the prompt alone fills the context.
        """
        limit = self.decoder.config.max_position_embeddings
        if len(token_ids) >= limit:
            raise ValueError(
                f"prompt: {len(token_ids)} tokens, but the model's context is {limit} and an "
                "answer must fit too; shorten it, or begin a new conversation"
            )
        room = min(sampling.max_tokens, limit - len(token_ids))
        return Request(token_ids, replace(sampling, max_tokens=room), self.ends)

    def text_stream(
        self, token_ids: Sequence[int], sampling: Sampling, opening: str = ""
    ) -> TextStream:
        """Return what turns the tokens after these into text, up to a stop string.

        `opening` is what they have written of an answer already; it is no part of the text.
        """
        return TextStream(
            self.tokenizer,
            stop=sampling.stop,
            after=token_ids[-16:],
            spare=(OPEN_TAG, CLOSE_TAG),
            opening=opening,
        )

    def _stream(
        self, token_ids: tuple[int, ...], sampling: Sampling, opening: str = ""
    ) -> Generator[str, None, None]:
        request = self.request(token_ids, sampling)
        text = self.text_stream(token_ids, sampling, opening)
        if opening:
            yield opening
        for event in whole(self.engine.generate([request])):
            if event.token_id is not None and event.finish_reason != "stop":
                yield text.feed([event.token_id])
            if text.stopped_by is not None:
                return
        yield text.flush()


def _multiplies_bf16(device: str) -> bool:
    """Whether a device has instructions for it; casting to and fro would lose more than it wins."""
    if device != "cpu":
        return True
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
