"""Where is kept what can be made again at any time."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Return the folder of one kind of such things, None for a user without a home."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return root / "fretsaw" / name if root.is_absolute() else None
