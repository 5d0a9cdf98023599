"""The rollout table: every sampled answer with its verdict, as parquet, a row an answer.

It is what an update reads, so a run that was stopped between the updates of one rollout goes on
from the file; and what an audit reads, so nothing that decided a reward is lost.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from fretsaw.stage.artifact import replace_file


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
    is_finished: bool
    temperature: float
    seed: int
    weight_version: int
    correct: float
    fault: str | None
    found: str
    expected: str
    reward: float
    advantage: float = 0.0
    trainer_logprobs: list[float] = field(default_factory=list)  # by the training forward
    ref_logprobs: list[float] = field(default_factory=list)  # of the reference weights


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


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a table that is there whole or not at all."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    with replace_file(path) as beside:
        pq.write_table(table, beside)


def read_rows(path: Path) -> list[Row]:
    """Read a table back; log-probabilities are bit for bit those that were written."""
    return [Row(**row) for row in pq.read_table(path, schema=SCHEMA).to_pylist()]
