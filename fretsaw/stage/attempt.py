"""What was done in another process, or the error it raised, fit to travel back."""

import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any


def attempt(do: Callable[[], Any]) -> tuple[str, Any]:
    """Return ("did", result) or ("raised", the error, fit to travel, with its traceback)."""
    try:
        return "did", do()
    except Exception as error:
        error.add_note(f"in a worker (process {os.getpid()}):\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error of a kind that cannot be sent
            return "raised", RuntimeError(traceback.format_exc())
        return "raised", error
