"""Whether an answer's words are the expected ones."""

import re
import unicodedata

from fretsaw.grade.grader import Expectation, Grade


def normalise(text: str) -> str:
    """Return the text without case, doubled spaces, and a full stop at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".")


def grade_exact(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the answer is the expected text, and what was compared."""
    found = normalise(answer)
    return Grade(float(found == normalise(expected["answer"])), found)


def grade_contains(answer: str, expected: Expectation) -> Grade:
    """Return 1 where the expected words stand in the answer as whole words, and where they do."""
    pattern = rf"(?<!\w){re.escape(normalise(expected['answer']))}(?!\w)"
    found = re.search(pattern, normalise(answer))
    return Grade(float(found is not None), found[0] if found else "")
