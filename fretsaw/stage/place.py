"""Where an output may stand: under a name of its own, where a folder can be."""

import os
from pathlib import Path


class Refused(ValueError):
    """The output folder may not be written: it belongs to something else."""


def check_place(out: Path) -> None:
    """Raise `ValueError` where nothing can be written as `out`, whatever the file system allows."""
    if out.name in ("", ".."):
        raise ValueError(
            f"--out {out}: it needs a name of its own, which the result takes when it is complete; "
            "give --out FOLDER/NAME"
        )
    if out.is_symlink() and not out.exists():
        raise ValueError(
            f"--out {out}: a link to {os.readlink(out)}, which is not there; remove the link, or "
            "choose another --out"
        )
    around = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not around.is_dir():
        raise ValueError(
            f"--out {out}: {around} is {'no folder' if around.exists() else 'a link to nothing'}, "
            "so nothing can stand in it; choose another --out"
        )


def refuse_existing(out: Path) -> None:
    """Raise `Refused` where a file or a folder with something in it stands as `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out}: already there; choose another --out or remove it first")
