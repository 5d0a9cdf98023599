"""What a check of one instruction finds, and what instructions of several families share."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Rules = Literal["repaired", "reference"]
RULES: tuple[Rules, ...] = get_args(Rules)
Relation = Literal["less than", "at least"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)


@dataclass(frozen=True)
class Finding:
    """Whether a text follows an instruction, and what was found in it."""

    is_followed: bool
    found: str


def counted(count: int, relation: Relation, wanted: int, what: str) -> Finding:
    """Return whether `count` of something stands in its relation to the wanted number."""
    is_followed = count < wanted if relation == "less than" else count >= wanted
    return Finding(is_followed, f"{count} {what}")


def whole_word(word: str) -> re.Pattern[str]:
    """Return what finds a word that no letter or digit lengthens, in any case."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return re.compile(before + re.escape(word) + after, re.IGNORECASE)
