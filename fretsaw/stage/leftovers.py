"""What a killed run leaves of an output: files under way, the old copy, the state to go on from.

Only who holds the output may clear it: all that is found belongs to processes that ended.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from fretsaw.stage import artifact, holder

UNDER_WAY = re.compile(r"\..+\.tmp|\.tmp\w{6}")  # ours; the file that safetensors writes first


def clear(out: Path) -> None:
    """Remove what is left over of `out`, finished or not; what a run goes on from is kept."""
    for path in [*find(out), *holder.abandoned(out.absolute().parent)]:
        _remove(path)


def find(out: Path) -> Iterator[Path]:
    """Yield what is left over of `out`; only reads."""
    beside = re.compile(rf"\.{re.escape(out.name)}\.\d+\.tmp")
    around = out.absolute().parent
    for path in around.iterdir() if around.is_dir() else ():
        if beside.fullmatch(path.name) or (path.name == f".{out.name}.old" and out.exists()):
            yield path
    is_finished = (out / artifact.MANIFEST).is_file()
    for folder in (artifact.partial_folder(out), *([out] if is_finished else [])):
        for path in sorted(folder.rglob(".*")):
            if UNDER_WAY.fullmatch(path.name):
                yield path
    for name in artifact.TO_GO_ON if is_finished else ():
        if (out / name).exists():
            yield out / name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
