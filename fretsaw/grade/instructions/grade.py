"""Whether an answer follows verifiable instructions, as IFEval grades (arXiv 2311.07911).

The strict verdict is on the answer as it is. The loose one also tries it without its first line,
its last, both, and each of these without asterisks; one that follows an instruction is enough.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fretsaw.grade.grader import Expectation, Grade
from fretsaw.grade.instructions.finding import RULES, Finding, Rules
from fretsaw.grade.instructions.kinds import INSTRUCTIONS, argument_fault, is_expression

MAX_FOUND = 120  # characters of evidence for one instruction
_LINE = re.compile(r"(\d+) (\S+) strict=(pass|fail) loose=(pass|fail)(?: (.*))?")


@dataclass(frozen=True)
class Verdict:
    """What became of one instruction."""

    id: str
    strict: bool
    loose: bool
    found: str = ""  # in the answer as it is


def grade_instructions(answer: str, expected: Expectation) -> Grade:
    """Return 1 where every instruction is followed, and the verdicts by position as evidence.

    `expected` has `instruction_id_list` and `kwargs`, one object an instruction, whose nulls are
    left out; `rules` (repaired) and `verdict` (strict) are optional. Raises ValueError for an
    instruction that is not known, and for arguments that are not its own.
    """
    verdicts = judge(answer, expected)
    match expected.get("verdict"):
        case None | "strict":
            is_right = all(one.strict for one in verdicts)
        case "loose":
            is_right = all(one.loose for one in verdicts)
        case other:
            raise ValueError(f"verdict is {other!r}; write strict or loose")
    return Grade(float(is_right), write_verdicts(verdicts))


def judge(answer: str, expected: Expectation) -> list[Verdict]:
    """Return the verdicts in the order of the instructions; a blank answer follows none.

    Raises ValueError as `grade_instructions` does.
    """
    rules = _rules(expected)
    asked = [(id, _arguments(id, given, rules)) for id, given in _instructions(expected)]
    texts = variants(answer)
    verdicts = []
    for id, arguments in asked:
        check = INSTRUCTIONS[id].check(rules)
        strict = check(answer, **arguments) if answer.strip() else Finding(False, "blank")
        loose = strict.is_followed or any(
            check(text, **arguments).is_followed for text in texts if text != answer
        )
        verdicts.append(Verdict(id, strict.is_followed, loose, strict.found))
    return verdicts


def variants(answer: str) -> list[str]:
    """Return the different texts that the loose verdict tries, the answer first; no blank ones."""
    lines = answer.split("\n")
    kept = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    texts = [*kept, *(text.replace("*", "") for text in kept)]
    return [text for text in dict.fromkeys(texts) if text.strip()]


def write_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return verdicts as evidence, a line each: place, id, strict, loose, what was found.

    For example `0 punctuation:no_comma strict=pass loose=pass 0 commas`.
    """
    return "\n".join(
        f"{place} {one.id} strict={_word(one.strict)} loose={_word(one.loose)} "
        + " ".join(one.found.split())[:MAX_FOUND]
        for place, one in enumerate(verdicts)
    )


def read_verdicts(evidence: str) -> list[Verdict]:
    """Return the verdicts that evidence holds. Raises ValueError for a line that is none."""
    verdicts = []
    for place, line in enumerate(evidence.split("\n")):
        found = _LINE.fullmatch(line)
        if found is None or int(found[1]) != place:
            raise ValueError(
                f"evidence {line[:80]!r}: no verdict {place} of an instruction; give what the "
                "grader instructions wrote"
            )
        verdicts.append(Verdict(found[2], found[3] == "pass", found[4] == "pass", found[5] or ""))
    return verdicts


@dataclass(frozen=True)
class Difference:
    """An instruction on which the two rule sets disagree."""

    answer: int  # its place among those compared
    position: int
    repaired: Verdict
    reference: Verdict

    def __str__(self) -> str:
        one, other = self.repaired, self.reference
        return (
            f"answer {self.answer}, {self.position} {one.id}: repaired strict={_word(one.strict)} "
            f"loose={_word(one.loose)} ({one.found}), reference strict={_word(other.strict)} "
            f"loose={_word(other.loose)} ({other.found})"
        )


def differences(pairs: Sequence[tuple[str, Expectation]]) -> list[Difference]:
    """Return where the rule sets give other verdicts on (answer, expectation) pairs."""
    found = []
    for number, (answer, expected) in enumerate(pairs):
        both = [judge(answer, {**expected, "rules": rules}) for rules in RULES]
        for position, (one, other) in enumerate(zip(*both, strict=True)):
            if one != replace(other, found=one.found):
                found.append(Difference(number, position, one, other))
    return found


def _word(is_followed: bool) -> str:
    return "pass" if is_followed else "fail"


def _rules(expected: Expectation) -> Rules:
    match expected.get("rules"):
        case None:
            return "repaired"
        case "repaired" | "reference" as rules:
            return rules
        case other:
            raise ValueError(f"rules is {other!r}; write one of {', '.join(RULES)}")


def _instructions(expected: Expectation) -> list[tuple[str, Any]]:
    """Return the instructions' ids with their arguments as they were given."""
    ids, kwargs = expected["instruction_id_list"], expected["kwargs"]
    if not isinstance(ids, list | tuple) or not ids:
        raise ValueError(f"instruction_id_list is {ids!r}; write a list of ids, one at least")
    if not isinstance(kwargs, list | tuple) or len(kwargs) != len(ids):
        raise ValueError(f"kwargs is {kwargs!r}; write a list of {len(ids)} objects, one an id")
    for id in ids:
        if not isinstance(id, str) or id not in INSTRUCTIONS:
            raise ValueError(f"instruction {id!r}: unknown; use one of {', '.join(INSTRUCTIONS)}")
    return list(zip(ids, kwargs, strict=True))


def _arguments(id: str, given: Any, rules: Rules) -> dict[str, Any]:
    """Return the checked arguments of an instruction."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{id}: its kwargs are {given!r}; write an object, {{}} for none")
    row = INSTRUCTIONS[id]
    arguments = {name: value for name, value in given.items() if value is not None}
    has = f"it has {', '.join(row.kwargs) or 'none'}"
    for name in arguments:
        if name not in row.kwargs:
            raise ValueError(f"{id}: no argument {name!r}; {has}")
    for name in row.kwargs:
        if name not in arguments:
            raise ValueError(f"{id}: {name} is missing; {has}")
        value = arguments[name]
        if (remedy := argument_fault(name, value)) is not None:
            raise ValueError(f"{id}: {name} is {value!r}; {remedy}")
        if rules == "reference" and name in row.expressions and is_expression(value):
            raise ValueError(
                f"{id}: {name} is {value!r}, a regular expression to the reference; use the rules "
                "repaired"
            )
    return arguments
