"""What a killed run leaves of an output: files under way, the old copy, the state to go on from.

Only who holds the output may look for it here: all that is found belongs to processes that ended.
"""

import contextlib
import re
import shutil
from pathlib import Path

from fretsaw.stage import artifact

UNDER_WAY = re.compile(r"\..+\.tmp|\.tmp\w{6}")  # ours; the file that safetensors writes first


def clear(out: Path) -> None:
    """Remove what is left over of `out`, finished or not; what a run goes on from is kept."""
    beside = re.compile(rf"\.{re.escape(out.name)}\.\d+\.tmp")
    for path in out.absolute().parent.iterdir():
        if beside.fullmatch(path.name) or (path.name == f".{out.name}.old" and out.exists()):
            _remove(path)
    is_finished = (out / artifact.MANIFEST).is_file()
    for folder in (artifact.partial_folder(out), *([out] if is_finished else [])):
        for path in sorted(folder.rglob(".*")):
            if UNDER_WAY.fullmatch(path.name):
                _remove(path)
    if is_finished:
        artifact.drop_resume_state(out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
