"""What the inputs of one stage have in common, checked before any work is done.

Stages meet on disk, so folders can be mixed up: text of another tokenizer, another parent's
ranking, rows longer than a context. Each is a `ValueError` that names both folders. No torch.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fretsaw.chat.format import chat_format
from fretsaw.chat.tokenizer import Tokenizer, hash_vocabulary
from fretsaw.checkpoint.beside import read_layers
from fretsaw.checkpoint.folder import check
from fretsaw.corpus.documents import without_format
from fretsaw.data.records import Record
from fretsaw.data.rows import read_objects
from fretsaw.data.sources import read_documents
from fretsaw.model.config import ModelConfig
from fretsaw.pipeline.kinds import CHECKPOINTS, STAGES, made_inputs
from fretsaw.stage.artifact import MANIFEST, hash_path, read_manifest
from fretsaw.tasks.task import asked_tasks


def check_inputs(stage: str, settings: Any, inputs: Mapping[str, Path]) -> None:
    """Raise where the inputs of a stage are no such things, or don't belong together."""
    for name, (file, stages) in made_inputs().items():
        if name in inputs and not (inputs[name] / file).is_file():
            commands = "` or `fretsaw ".join(stages)
            raise ValueError(
                f"{inputs[name]}: holds no {file}; as {name} give a folder that "
                f"`fretsaw {commands}` wrote"
            )
    if not STAGES[stage].computes:
        return
    configs = {
        inputs[name]: check_checkpoint(stage, name, inputs[name])
        for name in CHECKPOINTS
        if name in inputs and inputs[name].exists()
    }
    for path, config in configs.items():
        _check_rows(settings, path, config)
        if "corpus" in inputs:
            _check_text(inputs["corpus"], path)
    if "parent" in inputs and "ranking" in inputs:
        _check_ranking(inputs["ranking"], inputs["parent"])
    if "parent" in inputs and len(configs) == 2 and STAGES[stage].compares:
        parent = inputs["parent"]
        (child,) = configs.keys() - {parent}
        needs_states = getattr(settings, "cosine_weight", 0.0) > 0 and "teacher" not in inputs
        _check_pair(parent, configs[parent], child, configs[child], needs_states=needs_states)


def check_files(stage: str, settings: Any, inputs: Mapping[str, Path]) -> None:
    """Raise where a file that a stage reads is not there, or its first row, or a problem, is none.

    The rest of it is checked as it is read. So is a task without its file, or with one too much.
    """
    if hasattr(settings, "task"):
        problems = {key: path for key, path in inputs.items() if key.startswith("problems")}
        asked_tasks(settings.task, problems, 1, seed=0)
    for key, path in inputs.items():
        name = key.rstrip("0123456789")
        if name != "data":
            continue
        if not path.exists():
            raise ValueError(f"{stage}: its input {key} is not there ({path}); check the path")
        is_text = stage == "corpus"
        rows: Iterator[Any] = read_documents([str(path)]) if is_text else read_objects(path)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path}: nothing in it; give a file with rows")
        if isinstance(first, Record) and not _chats(inputs.get("parent")):
            raise without_format(first)


def _chats(parent: Path | None) -> bool:
    """Whether a checkpoint has a chat format; one that is yet to be made may have."""
    if parent is None or not (parent / "tokenizer.json").is_file():
        return parent is not None
    return chat_format(parent, Tokenizer.from_folder(parent)) is not None


def check_checkpoint(stage: str, name: str, path: Path) -> ModelConfig:
    """Check a checkpoint that a stage reads, as far as it reads it; return its architecture."""
    kind = STAGES[stage]
    return check(
        path,
        needs_weights=kind.reads_weights,
        needs_tokenizer=kind.tokenizer_of == name,
    )


def _check_rows(settings: Any, path: Path, config: ModelConfig) -> None:
    seq_len, longest = getattr(settings, "seq_len", 0), config.max_position_embeddings
    if seq_len > longest:
        raise ValueError(
            f"seq_len {seq_len}: the context of {path} is {longest}; give at most that"
        )


def _check_text(corpus: Path, checkpoint: Path) -> None:
    own, of_corpus = hash_vocabulary(checkpoint), hash_vocabulary(corpus)
    if None not in (own, of_corpus) and own != of_corpus:
        raise ValueError(
            f"{corpus}: tokenised by another tokenizer than that of {checkpoint}; make the corpus "
            "with --parent"
        )


def _check_ranking(ranking: Path, parent: Path) -> None:
    made_of = read_manifest(ranking)["inputs"] if (ranking / MANIFEST).is_file() else {}
    if "parent" in made_of and made_of["parent"]["hash"] != hash_path(parent):
        raise ValueError(
            f"{ranking}: ranks another parent than {parent}; give that parent's, made by "
            "`fretsaw rank`"
        )


def _check_pair(
    parent: Path, taught_by: ModelConfig, child: Path, config: ModelConfig, *, needs_states: bool
) -> None:
    names = ["vocab_size", *(["hidden_size", "num_hidden_layers"] if needs_states else [])]
    stands = read_layers(child)
    if needs_states and stands and stands.of == taught_by.num_hidden_layers:
        names.remove("num_hidden_layers")  # fused: it says which of the parent's its layers are
    for name in names:
        theirs, own = getattr(taught_by, name), getattr(config, name)
        if theirs != own:
            remedy = "set cosine_weight to 0" if name != "vocab_size" else "give its own parent"
            raise ValueError(
                f"{child}: {name} {own}, but that of {parent} is {theirs}, and they are compared; "
                f"{remedy}"
            )
