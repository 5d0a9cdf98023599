"""A GGUF file -> a folder in Hugging Face layout, which every command opens."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from fretsaw.checkpoint import decilm, llama, shards
from fretsaw.checkpoint.folder import copy_remote_code
from fretsaw.checkpoint.vocabulary_files import write_vocabulary
from fretsaw.model.config import ModelConfig
from fretsaw.model.size import BYTES_PER_ELEMENT, num_params
from fretsaw.stage.artifact import require_disk
from fretsaw.stage.place import refuse_existing
from fretsaw.stage.whole import atomic_folder, write_json

_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class Imported:
    """What a folder was made of."""

    out: Path
    config: ModelConfig
    stored: str  # how the file holds the matrices
    dtype: str  # how the folder does
    has_chat_template: bool

    def render(self) -> str:
        """Return a line for the user."""
        template = "a" if self.has_chat_template else "no"
        return (
            f"{self.out}: {num_params(self.config):,} parameters, {self.stored} in the file, "
            f"{self.dtype} here; {len(self.config.blocks)} layers, {template} chat template"
        )


def import_gguf(path: Path, out: Path, *, dtype: str = "auto") -> Imported:
    """Write a folder that is there whole or not at all; "auto" keeps what the file holds exactly.

    Weights in fewer than 16 bits are expanded to float32. Raises ValueError for a file that is cut,
    of another architecture, or whose weights or tokenizer are of a kind that is not read.
    """
    try:
        from fretsaw.checkpoint.gguf_reader import GgufFile
    except ImportError:
        raise ValueError(f"{path}: reading GGUF needs `pip install 'fretsaw[gguf]'`") from None
    refuse_existing(out)
    file = GgufFile(path)
    config, vocabulary = file.config(), file.vocabulary()
    tensors = file.tensors(config)
    if dtype == "auto":
        kept = {_DTYPES.get(name, "fp32") for name in file.precisions}
        dtype = kept.pop() if len(kept) == 1 else "fp32"
    with atomic_folder(out) as folder:
        require_disk(folder, math.ceil(num_params(config) * BYTES_PER_ELEMENT[dtype] * 1.01))
        layout = llama if config.is_homogeneous else decilm
        raw = layout.config_to_json(config, dtype=dtype)
        write_json(folder / "config.json", raw)
        write_vocabulary(vocabulary, folder, max_len=config.max_position_embeddings)
        ends = {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids)}
        write_json(
            folder / "generation_config.json", {**ends, "pad_token_id": vocabulary.pad_token_id}
        )
        if layout is decilm:
            copy_remote_code(folder)
        torch_dtype = getattr(torch, llama.DTYPE_NAMES[dtype])
        shards.write_tensors(folder, tensors, dtype=torch_dtype, shapes=tensors.shapes)
    stored = ", ".join(sorted(file.precisions))
    return Imported(out, config, stored, dtype, bool(vocabulary.chat_templates))
