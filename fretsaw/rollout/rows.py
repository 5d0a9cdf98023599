"""The rollout table: every sampled answer with its verdict, as parquet, a row an answer.

It is what an update reads, so a run that was stopped between the updates of one rollout goes on
from the file; and what an audit reads, so nothing that decided a reward is lost. It carries a
checksum of its rows, and of what they were sampled for.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from fretsaw.stage.whole import replace_file


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer: what was asked, what was written, what became of it."""

    problem: str  # its id
    kind: str
    mode: str
    group: int
    index: int
    question: str  # the user's last turn
    prompt: str
    completion: str
    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]  # the engine's, raw, at temperature 1
    num_tokens: int  # of the answer, also where a server tells no ids
    is_finished: bool
    temperature: float
    top_p: float
    seed: int
    weight_version: int
    correct: float
    is_graded: bool  # else a judge came to no verdict, and it counts in no mean
    fault: str | None
    found: str
    expected: str
    reward: float
    advantage: float = 0.0
    trainer_logprobs: list[float] = field(default_factory=list)  # by the training forward
    ref_logprobs: list[float] = field(default_factory=list)  # of the reference weights
    error: str | None = None  # why the answer failed, where it did


_TYPES = {
    str: pa.string(),
    str | None: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list[int]: pa.list_(pa.int32()),
    list[float]: pa.list_(pa.float32()),  # float32 as they are computed, so nothing is lost
}
SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in get_type_hints(Row).items()])
_MAY_LACK = {"error", "num_tokens", "top_p", "is_graded"}  # columns, where all rows imply them


_ARRAYS: dict[str, Any] = {
    name: "i" if kind == list[int] else "f"
    for name, kind in get_type_hints(Row).items()
    if kind in (list[int], list[float])
}
CHECKSUM, PURPOSE = b"fretsaw.checksum", b"fretsaw.purpose"  # keys of the file's metadata


class DamagedRows(ValueError):
    """A rollout table that is not as it was written, or that something else wrote."""


def write_rows(path: Path, rows: Sequence[Row], *, purpose: str = "") -> None:
    """Write a table that is there whole or not at all; `purpose` says what it was sampled for."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    about = {CHECKSUM: checksum(rows, purpose), PURPOSE: purpose}
    with replace_file(path) as beside:
        pq.write_table(table.replace_schema_metadata(about), beside)


def read_rows(path: Path, *, purpose: str | None = None) -> list[Row]:
    """Read a table back; log-probabilities are bit for bit those that were written.

    Raises `DamagedRows` where its bytes or rows are others than were written, and where it was
    written for another purpose than the one that is named. A table without a checksum is read where
    no purpose is named.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a rollout table was to be read")
    content = path.read_bytes()
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
        lacking = {*SCHEMA.names} - {*table.schema.names}
        wanted = pa.schema([field for field in SCHEMA if field.name not in lacking])
        is_ours = lacking <= _MAY_LACK and table.schema.equals(wanted)
        rows = [_row(columns) for columns in table.to_pylist()] if is_ours else []
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise _damaged(path, f"its bytes are damaged ({_first_line(error)})") from None
    if not is_ours:
        raise _damaged(path, "its columns are not those of a rollout table")
    about = table.schema.metadata or {}
    found = about.get(PURPOSE, b"").decode(errors="replace")
    if CHECKSUM in about or purpose is not None:
        if about.get(CHECKSUM, b"").decode(errors="replace") != checksum(rows, found):
            raise _damaged(path, f"its {len(rows)} rows are not those that were written")
        if purpose not in (None, found):
            raise _damaged(path, "its rows were sampled for another run, or another rollout")
    return rows


def _row(columns: Mapping[str, Any]) -> Row:
    return Row(**{**_implied(columns["token_ids"]), **columns})


def _implied(token_ids: Sequence[int]) -> dict[str, Any]:
    """Return what a row without these columns says."""
    return {"error": None, "num_tokens": len(token_ids), "top_p": 1.0, "is_graded": True}


def checksum(rows: Sequence[Row], purpose: str) -> str:
    """Return the sha256 of rows as they are stored, numbers by their bits."""
    digest = hashlib.sha256(f"{purpose} {len(rows)}".encode())
    for row in rows:
        for name, value in vars(row).items():
            if name in _MAY_LACK and value == _implied(row.token_ids)[name]:
                continue
            bits = repr(value).encode()
            if name in _ARRAYS and value is not None and None not in value:
                bits = array(_ARRAYS[name], value).tobytes()
            digest.update(f" {name} {len(bits)} ".encode() + bits)
    return digest.hexdigest()


def _damaged(path: Path, fault: str) -> DamagedRows:
    return DamagedRows(f"{path}: {fault}; make it again")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
