"""lm-evaluation-harness's IFEval checkers without a download, and answers to compare on.

Its modules ask for nltk's Punkt when they are imported, and for a dictionary that can't be changed.
Neither enters a verdict of the types compared: words are split by nltk's own Treebank rules, which
need no data. Only the number of sentences needs it, and is not compared.
"""

import importlib
import json
import random
import re
import string
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

WITHOUT_ORACLE = "length_constraints:number_sentences"


def load_oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return lm_eval.tasks.ifeval.utils; the test is skipped where a package is missing."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("lm_eval")
    from langdetect import DetectorFactory

    plain: Any = types.ModuleType("immutabledict")
    plain.immutabledict = dict
    monkeypatch.setitem(sys.modules, "immutabledict", plain)
    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    monkeypatch.setattr(DetectorFactory, "seed", 0)
    util = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")

    class WithoutSentences:
        @staticmethod
        def word_tokenize(text: str) -> list[str]:
            return nltk.word_tokenize(text, preserve_line=True)

        tokenize = nltk.tokenize

    monkeypatch.setattr(util, "nltk", WithoutSentences)
    monkeypatch.setattr(util, "count_sentences", lambda text: 0)
    return importlib.import_module("lm_eval.tasks.ifeval.utils")


def oracle_verdicts(oracle: Any, row: Mapping[str, Any], answer: str) -> list[tuple[bool, bool]]:
    """Return (strict, loose) of each instruction, as the reference has it."""
    given = oracle.InputExample(**row)
    strict = oracle.test_instruction_following_strict(given, answer)
    loose = oracle.test_instruction_following_loose(given, answer)
    pairs = zip(strict.follow_instruction_list, loose.follow_instruction_list, strict=True)
    return [(bool(one), bool(other)) for one, other in pairs]


def is_compared(id: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the reference has a verdict that another run of it repeats."""
    letter = kwargs.get("letter", "a")  # in place of another character it draws a letter
    return id != WITHOUT_ORACLE and letter in string.ascii_letters


def answers_to(row: Mapping[str, Any], texts: list[str], seed: int) -> list[str]:
    """Return answers of several kinds: texts as they are, and bent towards the instructions."""
    draw = random.Random(f"{seed} {row['key']}")
    plain = [draw.choice(texts), "\n\n".join(draw.sample(texts, 3)), row["prompt"]]
    empty = ["", " \n", ".", "12 34", "***", "\n\n\n"]
    bent = [_bent(row, draw.choice(texts), draw) for _ in range(4)]
    framed = [f"Sure, here it is:\n{text}\nI hope it helps!" for text in bent[:2]]
    return [*plain, draw.choice(empty), *bent, *framed]


def _bent(row: Mapping[str, Any], text: str, draw: random.Random) -> str:
    """Return a text that does what it is told, more or less."""
    for id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        off = draw.choice((-1, 0, 0, 1))
        text = _BENDS[id](text, {**kwargs, "off": off}, draw)
    return text


def _listed(mark: str, name: str) -> Any:
    def bend(text: str, kwargs: Mapping[str, Any], draw: random.Random) -> str:
        lines = [mark.format(i + 1) for i in range(kwargs[name] + kwargs["off"])]
        return "\n".join([text.replace("*", "").replace("-", " "), *lines])

    return bend


def _paragraphs(text: str, kwargs: Mapping[str, Any], draw: random.Random) -> str:
    divider = draw.choice(("\n***\n", " *** ", "***", "\n\n***\n\n"))
    return divider.join([text.replace("*", "")] * (kwargs["num_paragraphs"] + kwargs["off"]))


def _nth(text: str, kwargs: Mapping[str, Any], draw: random.Random) -> str:
    line = " ".join(text.split())
    parts = [line] * (kwargs["num_paragraphs"] + kwargs["off"])
    word = draw.choice(('"{}"', "{},", "{}", "'{}'s", "**{}**")).format(kwargs["first_word"])
    parts[kwargs["nth_paragraph"] - 1 : kwargs["nth_paragraph"]] = [f"{word} {line}"]
    return draw.choice(("\n\n", "\n\n", "\n\n\n\n", "\n \n")).join(parts)


def _quoted(text: str, kwargs: Mapping[str, Any], draw: random.Random) -> str:
    return draw.choice(('"{}"', "“{}”", '"{}', ' "{}"\n')).format(text)


def _repeated(name: str, count: str) -> Any:
    def bend(text: str, kwargs: Mapping[str, Any], draw: random.Random) -> str:
        word = draw.choice((kwargs[name], kwargs[name].upper(), f"a{kwargs[name]}s"))
        return f"{text}\n" + f"{word} " * (kwargs[count] + kwargs["off"])

    return bend


def _words(text: str, kwargs: Mapping[str, Any], draw: random.Random) -> str:
    words = re.findall(r"\S+", text) * 300
    return " ".join(words[: kwargs["num_words"] + kwargs["off"] * draw.choice((1, 20))])


def _json(text: str, kwargs: Mapping[str, Any], draw: random.Random) -> str:
    value = draw.choice(({"text": text}, [text], text, 3, float("nan")))
    return draw.choice(("{}", "```json\n{}\n```", "```\n{}\n```", "{},")).format(json.dumps(value))


def _capitals(text: str, kwargs: Mapping[str, Any], draw: random.Random) -> str:
    word = draw.choice(("GOOD", "CAN'T", "CANNOT", "WELL-KNOWN", "U.S.", "I'M", "A"))
    return f"{text.lower()} " + f"{word}, " * (kwargs["capital_frequency"] + kwargs["off"])


_BENDS: dict[str, Any] = {
    "keywords:existence": lambda t, k, d: f"{t} {d.choice((' ', 'x')).join(k['keywords'])}",
    "keywords:frequency": _repeated("keyword", "frequency"),
    "keywords:forbidden_words": lambda t, k, d: (
        t + d.choice(("", f" {k['forbidden_words'][0]}.", f" un{k['forbidden_words'][0]}"))
    ),
    "keywords:letter_frequency": _repeated("letter", "let_frequency"),
    "language:response_language": lambda t, k, d: d.choice(
        (
            t,
            "यह एक अच्छा दिन है और हम खुश हैं।",
            "Это хороший день, и мы рады.",
            "1 2 3",
            "좋은 날입니다",
        )
    ),
    "length_constraints:number_sentences": lambda t, k, d: t,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _nth,
    "detectable_content:number_placeholders": _listed("[name {}]", "num_placeholders"),
    "detectable_content:postscript": lambda t, k, d: (
        t
        + d.choice(
            ("\n\n{} Bye.", " {}", "\nthe U.S.P.S. came", "\nP. S. Bye", "\np.p.s. Bye")
        ).format(k["postscript_marker"])
    ),
    "detectable_format:number_bullet_lists": _listed("* point {}", "num_bullets"),
    "detectable_format:constrained_response": lambda t, k, d: d.choice(
        ("My answer is yes.", "My answer is no. My answer is yes.", "Yes.")
    ),
    "detectable_format:number_highlighted_sections": lambda t, k, d: _listed(
        d.choice(("*part {}*", "**part {}**", "***part {}***", "* part {} *")), "num_highlights"
    )(t, k, d),
    "detectable_format:multiple_sections": lambda t, k, d: _listed(
        d.choice(("\n{} {{}}\ntext", "see {} {{}}", "**{}{{}}**")).format(k["section_spliter"]),
        "num_sections",
    )(t, k, d),
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda t, k, d: d.choice(("<<A title>>\n", "<<>>", "<< >>")) + t,
    "combination:two_responses": lambda t, k, d: d.choice(
        (f"{t}******{t} too", f"{t}******{t}", f"******{t}\n******\nNo******", f"{t}*******{t} so")
    ),
    "combination:repeat_prompt": lambda t, k, d: (
        d.choice(("", " ", "Sure. ")) + k["prompt_to_repeat"] + d.choice(("", f"\n{t}"))
    ),
    "startend:end_checker": lambda t, k, d: (
        t + " " + d.choice(("{}", '{}"', "{} Bye", "**{}**")).format(k["end_phrase"])
    ),
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": lambda t, k, d: d.choice((t.upper(), t.upper(), "A", "12")),
    "change_case:english_lowercase": lambda t, k, d: d.choice((t.lower(), t.lower(), "a")),
    "punctuation:no_comma": lambda t, k, d: t.replace(",", d.choice(("", "", "，", ","))),
}


def texts_of_models(data: Path) -> list[str]:
    """Return what models wrote: answers to MT-Bench, both sides of JudgeBench, role plays."""
    bench = data / "mt_bench/reference_answer/gpt-4.jsonl"
    judged = data / "judgebench/claude-3-5-sonnet-20240620.jsonl"
    texts = [
        turn
        for line in bench.read_text().splitlines()
        for turn in json.loads(line)["choices"][0]["turns"]
    ]
    for line in judged.read_text().splitlines()[:100]:
        row = json.loads(line)
        texts += [row["response_A"], row["response_B"]]
    plays = json.loads(
        (data / "gpteacher/roleplay-simple-deduped-roleplay-instruct.json").read_text()
    )
    return [text for text in (*texts, *(row["response"] for row in plays[:300])) if text.strip()]
