"""The teacher of a distillation: the live parent, or what was stored of it beforehand.

A cache holds, for every position of the windows that a distillation with the same seed will read,
the parent's k largest log-probabilities with their token ids, and the log of what all other tokens
have together. Files are plain arrays, mapped into memory when read:

    windows.npy                  the windows of the corpus that are stored, ascending
    train-00000-logprobs.npy     rows x seq_len x (k + 1), float16; the last is all others' log
    train-00000-ids.npy          rows x seq_len x k, uint16 or uint32
    heldout-00000-...            the same for the first held-out rows
    teacher.json                 vocabulary, tokenizer, precision
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, Int64, Integer
from torch import Tensor

from fretsaw.chat.tokenizer import hash_vocabulary
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.data import loader
from fretsaw.distill.settings import TeachSettings
from fretsaw.model.decoder import Decoder
from fretsaw.stage import artifact, whole
from fretsaw.stage.execute import StageRun
from fretsaw.stage.progress import say
from fretsaw.training.losses import top_k
from fretsaw.training.precision import autocast

WINDOWS = "windows.npy"


@dataclass(frozen=True)
class TopK:
    """What a parent said of some rows."""

    log_probs: Float[Tensor, "rows seq k_plus_1"]
    ids: Int64[Tensor, "rows seq k"]


# --- writing --------------------------------------------------------------------------------------


def teach(settings: TeachSettings, inputs: Mapping[str, Path], run: StageRun) -> dict[str, Any]:
    """Write the parent's top-k log-probabilities of a distillation's rows, file by file."""
    config = checkpoint.read_config(inputs["parent"])
    seq_len, k = settings.seq_len, settings.top_k
    if k > config.vocab_size:
        raise ValueError(f"top_k {k}: the vocabulary has {config.vocab_size}; give at most that")
    if seq_len > config.max_position_embeddings:
        raise ValueError(
            f"seq_len {seq_len}: the parent's context is {config.max_position_embeddings}; "
            "give at most that"
        )
    tokens = loader.read_tokens(inputs["corpus"] / "train.npy")
    windows = _windows(tokens, seq_len, settings.tokens, run.seed)
    heldout = loader.first_rows(inputs["corpus"] / "heldout.npy", seq_len, settings.heldout_tokens)
    num_tokens = (len(windows) + len(heldout)) * seq_len
    id_type = np.uint16 if config.vocab_size <= 1 << 16 else np.uint32
    bytes_per_token = 2 * (k + 1) + np.dtype(id_type).itemsize * k
    say(
        f"teach: {num_tokens * bytes_per_token / 2**20:,.1f} MiB on disk, {bytes_per_token} bytes "
        f"for each of {num_tokens:,} tokens"
    )
    artifact.require_disk(run.folder, num_tokens * bytes_per_token)

    parent = checkpoint.load(inputs["parent"], device=run.device).eval().requires_grad_(False)
    np.save(run.folder / WINDOWS, windows)
    rows_per_file = max(1, settings.shard_tokens // seq_len)
    files = [
        (f"train-{i:05d}", windows[at : at + rows_per_file].tolist())
        for i, at in enumerate(range(0, len(windows), rows_per_file))
    ]
    run.progress.start("teaching", len(files) + 1, unit="file")
    micro_rows = max(1, settings.micro_batch_tokens // seq_len)
    for done, (name, own) in enumerate(files):
        if not _is_written(run.folder, name):
            rows = loader.gather(tokens, own, seq_len)
            _write(run, name, parent, rows, k, id_type, micro_rows)
        run.step(done + 1)
    _write(run, "heldout-00000", parent, heldout, k, id_type, micro_rows)
    whole.write_json(
        run.folder / "teacher.json",
        {
            "vocab_size": config.vocab_size,
            "tokenizer": hash_vocabulary(inputs["parent"]),
            "dtype": run.dtype,
        },
    )
    run.step(len(files) + 1)
    return {"windows": len(windows), "tokens": num_tokens, "bytes_per_token": bytes_per_token}


def _windows(
    tokens: loader.Tokens, seq_len: int, num_tokens: int, seed: int
) -> Int64[np.ndarray, " windows"]:
    """Return, ascending, the windows that a run of `num_tokens` reads, however it is cut."""
    available, wanted = loader.num_windows(tokens, seq_len), num_tokens // seq_len
    read = loader.order(available, min(wanted, available), seed=seed, step=0)
    return np.unique(np.array(read, dtype=np.int64))


def _is_written(folder: Path, name: str) -> bool:
    return (folder / f"{name}-ids.npy").is_file()  # the second of the two


def _write(
    run: StageRun,
    name: str,
    parent: Decoder,
    rows: Int64[np.ndarray, "rows seq_plus_1"],
    k: int,
    id_type: type,
    micro_rows: int,
) -> None:
    shape = (len(rows), rows.shape[1] - 1)
    log_probs, ids = np.empty((*shape, k + 1), np.float16), np.empty((*shape, k), id_type)
    for at in range(0, len(rows), micro_rows):
        token_ids = torch.from_numpy(rows[at : at + micro_rows, :-1]).to(run.device)
        with torch.no_grad(), autocast(parent.device, run.dtype):
            hidden = parent.hidden_states(token_ids).flatten(0, 1)
            values, found = top_k(hidden, parent.head_weight, k)
        there = slice(at, at + micro_rows)
        log_probs[there] = values.unflatten(0, token_ids.shape).cpu().numpy()
        ids[there] = found.unflatten(0, token_ids.shape).cpu().numpy()
    for what, array in (("logprobs", log_probs), ("ids", ids)):
        with (
            whole.replace_file(run.folder / f"{name}-{what}.npy") as beside,
            beside.open("wb") as file,
        ):
            np.save(file, array)


# --- reading --------------------------------------------------------------------------------------


class CachedTeacher:
    """A finished cache, read row by row."""

    def __init__(self, folder: Path):
        self.windows: Int64[np.ndarray, " windows"] = np.load(folder / WINDOWS)
        self._train = _Files(folder, "train")
        self._heldout = _Files(folder, "heldout")

    def rows(self, windows: Sequence[int], device: str) -> TopK:
        """Return what is stored of these windows of the training text, in their order."""
        at = np.searchsorted(self.windows, windows).clip(max=len(self.windows) - 1)
        absent = np.flatnonzero(self.windows[at] != windows)
        if len(absent):
            raise ValueError(
                f"teacher: window {windows[absent[0]]} of the corpus is not among the "
                f"{len(self.windows)} that are cached; make the cache with more --tokens"
            )
        return self._train.rows(at, device)

    def heldout_rows(self, start: int, stop: int, device: str) -> TopK:
        """Return what is stored of some of the first held-out rows."""
        return self._heldout.rows(np.arange(start, stop), device)

    @property
    def num_heldout_rows(self) -> int:
        """How many held-out rows are stored."""
        return self._heldout.num_rows


def teacher_of_rows(
    teacher: Decoder | CachedTeacher | None, windows: Sequence[int], device: str
) -> Decoder | TopK | None:
    """Return who teaches these windows: the live parent as it is, or what is stored of it."""
    return teacher.rows(windows, device) if isinstance(teacher, CachedTeacher) else teacher


def teacher_of_heldout(
    teacher: Decoder | CachedTeacher | None, start: int, stop: int, device: str
) -> Decoder | TopK | None:
    """Return who judges these held-out rows: the live parent, or what is stored of it."""
    if isinstance(teacher, CachedTeacher):
        return teacher.heldout_rows(start, stop, device)
    return teacher


class _Files:
    def __init__(self, folder: Path, split: str):
        names = sorted(folder.glob(f"{split}-*-logprobs.npy"))
        self._log_probs = [np.load(path, mmap_mode="r") for path in names]
        self._ids = [
            np.load(path.with_name(path.name.replace("-logprobs", "-ids")), mmap_mode="r")
            for path in names
        ]
        self._starts = np.cumsum([0, *map(len, self._ids)])
        self.num_rows = int(self._starts[-1])

    def rows(self, rows: Integer[np.ndarray, " rows"], device: str) -> TopK:
        files = np.searchsorted(self._starts, rows, side="right") - 1
        places = list(zip(files, rows - self._starts[files], strict=True))
        log_probs = np.stack([self._log_probs[file][row] for file, row in places])
        ids = np.stack([self._ids[file][row] for file, row in places]).astype(np.int64)
        return TopK(normalised(torch.from_numpy(log_probs).to(device)), _on(ids, device))


def _on(ids: Int64[np.ndarray, "rows seq k"], device: str) -> Int[Tensor, "rows seq k"]:
    return torch.from_numpy(ids).to(device)


def normalised(
    log_probs: Float16[Tensor, "rows seq k_plus_1"],
) -> Float[Tensor, "rows seq k_plus_1"]:
    """Return float32 log-probabilities that sum to one again after their rounding to float16."""
    return log_probs.float().log_softmax(-1)


def open_cache(
    folder: Path, inputs: Mapping[str, Path], *, seq_len: int, tokens: int, heldout_tokens: int,
    seed: int,
) -> CachedTeacher:  # fmt: skip
    """Return the cached teacher of a distillation, or raise `ValueError` where it isn't its own.

    The parent is known by hash: of --parent where it is given, else from the child's manifest.
    """
    manifest = artifact.read_manifest(folder)
    if manifest["stage"] != "teach":
        raise ValueError(f"{folder}: made by {manifest['stage']!r}; give a folder of `teach`")
    made_from = {name: entry["hash"] for name, entry in manifest["inputs"].items()}
    if _parent_hash(inputs) != made_from["parent"]:
        raise ValueError(f"{folder}: the cache of another parent; make it with this child's")
    if artifact.hash_path(inputs["corpus"]) != made_from["corpus"]:
        raise ValueError(f"{folder}: the cache of another corpus; make it with this one")
    stated = artifact.read_output(
        folder, "teacher.json", {"vocab_size": int, "tokenizer": (str, type(None))}
    )
    vocab_size = checkpoint.read_config(inputs["child"]).vocab_size
    own_tokenizer = hash_vocabulary(inputs["child"])
    is_other = None not in (own_tokenizer, stated["tokenizer"])
    is_other = is_other and own_tokenizer != stated["tokenizer"]
    if is_other or vocab_size != stated["vocab_size"]:
        raise ValueError(
            f"{folder}: the cache of another tokenizer ({stated['vocab_size']} tokens, the child "
            f"has {vocab_size}); make it with the child's own parent"
        )
    if manifest["settings"]["seq_len"] != seq_len:
        raise ValueError(
            f"{folder}: rows of {manifest['settings']['seq_len']} tokens are cached, but seq_len "
            f"is {seq_len}; give that seq_len or make the cache again"
        )
    cache = CachedTeacher(folder)
    corpus = loader.read_tokens(inputs["corpus"] / "train.npy")
    absent = np.setdiff1d(_windows(corpus, seq_len, tokens, seed), cache.windows)
    if len(absent):
        raise ValueError(
            f"{folder}: {len(absent)} of the windows that seed {seed} reads in {tokens} tokens are "
            f"not cached; make the cache with --seed {seed} --tokens {tokens}"
        )
    held = loader.first_rows(inputs["corpus"] / "heldout.npy", seq_len, heldout_tokens)
    if len(held) > cache.num_heldout_rows:
        raise ValueError(
            f"{folder}: {cache.num_heldout_rows} held-out rows are cached, but {len(held)} are "
            f"measured; give at most {cache.num_heldout_rows * seq_len} as heldout_tokens"
        )
    return cache


def _parent_hash(inputs: Mapping[str, Path]) -> str:
    """Return the hash of the child's parent: the one given, or the one it was assembled from."""
    if "parent" in inputs:
        return artifact.hash_path(inputs["parent"])
    folder = inputs["child"]
    while (folder / artifact.MANIFEST).is_file():
        made_from = artifact.read_manifest(folder)["inputs"]
        if "parent" in made_from:
            return made_from["parent"]["hash"]
        before = made_from.get("assembled") or made_from.get("child") or made_from.get("model")
        if before is None or artifact.hash_path(Path(before["path"])) != before["hash"]:
            break
        folder = Path(before["path"])
    raise ValueError(
        f"{inputs['child']}: nothing tells its parent, so nobody knows whether the cached teacher "
        "is its own; give --parent"
    )
