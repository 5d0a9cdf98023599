"""What memory refuses, as one sentence: what was asked for, and what to do."""

import re

REMEDY = (
    "ask for less at once (fewer rows or tokens, see `fretsaw plan`), free some, or take a machine "
    "with more"
)
OF_A_CPU = "can't allocate memory"  # in torch's words, in an error of no kind of its own


def sentence_of(error: BaseException) -> str | None:
    """Return the sentence, None where the error is no refusal of memory; it knows torch's too."""
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or OF_A_CPU in str(error)
    if not (isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_of_torch)):
        return None
    size = re.search(r"to allocate ([\d.]+ \w+)", str(error))
    asked = f"{size[1]} asked for, which are not free" if size else "more asked for than is free"
    return f"out of memory: {asked}; {REMEDY}"
