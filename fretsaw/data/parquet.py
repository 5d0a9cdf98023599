"""A parquet file -> rows; one that is damaged is told by its row group, or its row and column."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

REMEDY = "the file is damaged, or of a kind that pyarrow cannot read; write it again"


def read_parquet(path: Path, column: str | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, row), with all columns or the one that is named, if it is there.

    Raises ValueError for a file that is none, has no rows, or cannot be read to its end.
    """
    import pyarrow.parquet

    faults = (pyarrow.ArrowException, OSError)
    try:
        table = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    except faults as error:
        reason = _reason(error)
        raise ValueError(
            f"{path}: not a parquet file ({reason}); check how it was written"
        ) from None
    with table:
        if table.metadata.num_rows == 0:
            raise ValueError(f"{path}: a table without rows; give one with text in it")
        names = table.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{path}: two columns are named {twice!r}; rename one")
        columns = [column] if column in names else None
        number = 0
        for group in range(table.num_row_groups):
            batches = table.iter_batches(row_groups=[group], columns=columns)
            while True:
                try:
                    batch = next(batches, None)
                except faults as error:
                    where = f"{path}, row group {group + 1} of {table.num_row_groups}"
                    raise ValueError(f"{where}: {_reason(error)}; {REMEDY}") from None
                if batch is None:
                    break
                for row in _rows(batch, path, number):
                    number += 1
                    yield f"{path}, row {number}", row
        if number != table.metadata.num_rows:
            stated = f"its end states {table.metadata.num_rows} rows, but {number} are there"
            raise ValueError(f"{path}: {stated}; {REMEDY}")


def _rows(batch: "pyarrow.RecordBatch", path: Path, before: int) -> list[dict[str, Any]]:
    faults = (ValueError, OverflowError, ArithmeticError, TypeError, NotImplementedError)
    try:
        return batch.to_pylist()
    except faults:  # some value of it; which one is told below
        pass
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        for index, value in enumerate(values):
            try:
                value.as_py()
            except UnicodeDecodeError:
                raise ValueError(
                    f"{path}, row {before + index + 1}: {name!r} is not UTF-8; convert it"
                ) from None
            except faults as error:
                where = f"{path}, row {before + index + 1}: {name!r} ({values.type})"
                raise ValueError(
                    f"{where} cannot be read ({_reason(error)}); write it as text, or leave the "
                    "column out"
                ) from None
    raise ValueError(f"{path}, rows {before + 1} and on: cannot be read; {REMEDY}")


def _reason(error: BaseException) -> str:
    """Return what a library says, on one line and not at length."""
    text = "".join(filter(str.isprintable, " ".join(str(error).split())))
    return text[:120].rstrip(".") or type(error).__name__
