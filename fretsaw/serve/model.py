"""What a server answers with: the checkpoint's tokenizer, toggle and sampling, and its name."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fretsaw.chat.format import chat_format, text_ends
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.template import read_chat_template
from fretsaw.chat.toggle import Toggle
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint.folder import read_config
from fretsaw.engine.sampling import Sampling
from fretsaw.model.config import ModelConfig
from fretsaw.model.size import num_params

DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # by a checkpoint


def default_sampling(folder: Path) -> Sampling:
    """Return how a checkpoint's answers are drawn where a request doesn't say: OpenAI's way.

    Unless generation_config.json says otherwise; `do_sample: false` there means greedy.
    """
    path = folder / "generation_config.json"
    raw = _read(path)
    named = {name: raw[name] for name in DEFAULTED if raw.get(name) is not None}
    if raw.get("do_sample") is False:
        named["temperature"] = 0.0
    if named.get("top_k") == -1:  # all, too
        named["top_k"] = 0
    sampling = Sampling(**{"temperature": 1.0, **named})
    try:
        sampling.check()
    except ValueError as error:
        raise ValueError(f"{path}: {error}; correct it there") from error
    return sampling


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A checkpoint as its clients see it."""

    name: str
    tokenizer: Tokenizer
    config: ModelConfig
    context: int  # how many tokens a prompt and its answer may have together
    format: ChatFormat | None = None  # None: it only continues text
    defaults: Sampling = Sampling(temperature=1.0)  # noqa: RUF009  it is frozen
    chat_template: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, folder: Path, capacity: int, name: str | None = None) -> "ServedModel":
        """Read what a checkpoint's folder says; the name is by default the folder's.

        `capacity` is how many tokens the engine's memory holds.
        """
        config, tokenizer = read_config(folder), Tokenizer.from_folder(folder)
        return cls(
            name=name or folder.resolve().name,
            tokenizer=tokenizer,
            config=config,
            context=min(config.max_position_embeddings, capacity),
            format=chat_format(folder, tokenizer),
            defaults=default_sampling(folder),
            chat_template=read_chat_template(folder),
        )

    @property
    def toggle(self) -> Toggle:
        """How it is told whether to reason."""
        return "none" if self.format is None else self.format.toggle

    @property
    def speaks(self) -> str:
        """What is done with conversations, in a few words."""
        if self.format is None:
            return "no chat format, plain text only"
        return f"chats in {self.format.name}  toggle {self.toggle}"

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text or a turn, whichever of the checkpoint's files names them."""
        return text_ends(self.tokenizer, self.format)

    def stop_strings(self, stop: Sequence[str]) -> tuple[str, ...]:
        """Return the strings that must be looked for: a token that ends every text needs none."""
        names = {self.tokenizer.token(id) for id in self.ends}
        return tuple(string for string in stop if string not in names)

    def card(self, weight_version: int) -> dict[str, Any]:
        """Return the model as /v1/models shows it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "fretsaw",
            "max_model_len": self.context,
            "weights_version": weight_version,
            "reasoning_toggle": self.toggle,
        }

    def architecture(self) -> dict[str, Any]:
        """Return what the page draws."""
        return {
            "name": self.name,
            "toggle": self.toggle,
            "chats": self.format is not None,
            "hidden_size": self.config.hidden_size,
            "params": num_params(self.config),
            "vocab": self.config.vocab_size,
            "context": self.context,
            "temperature": self.defaults.temperature,
            "blocks": [
                {
                    "attention": block.attention_name,
                    "ffn": block.ffn_name,
                    "kv_heads": block.num_key_value_heads,
                    "ffn_width": block.intermediate_size,
                }
                for block in self.config.blocks
            ],
        }

    def tokenizer_info(self) -> dict[str, Any]:
        """Return what clients that tokenize over the wire ask first."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_ids
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": self.tokenizer.vocab_size,
            "model_max_length": self.context,
            "bos_token": None if bos is None else self.tokenizer.token(bos),
            "eos_token": self.tokenizer.token(eos[0]) if eos else None,
            "pad_token": None,
            "chat_template": self.chat_template,
        }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
