"""Families of problems: one row a task, by the name that people write.

`word_problems:steps=2-5,max_value=30` is a task with options. One of a published set reads the file
that it is given, `gsm8k:file=test.jsonl`; a path alone is the user's own file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fretsaw.chat.reasoning import Mode
from fretsaw.data import world
from fretsaw.engine.sampling import Sampling
from fretsaw.grade.killable import named
from fretsaw.tasks.problem import BadOption, Problem, TooFew, read_problems


@dataclass(frozen=True, kw_only=True)
class Task:
    """A family of problems: where they come from, and under what they are answered."""

    summary: str
    function: str  # "module:function" of (number, seed, split, options), or of a file's path
    source: str = ""  # where the file comes from that it reads; none where they are generated
    options: tuple[str, ...] = ()  # what may stand after the name
    sampling: Mapping[Mode, Sampling]  # what answers are drawn with where nothing else is said
    figures: str = ""  # "module:function" of a mode's evidence: what it is scored by besides
    licence: str  # of the data
    page: str = "eval.md"  # its page in docs/

    def load(self) -> Callable[..., list[Problem]]:
        """Import the function."""
        return named(self.function)


GREEDY = Sampling(max_tokens=96)
# As the papers evaluate (arXiv 2505.00949, section 7): sampled with reasoning, greedy without.
SHORT: Mapping[Mode, Sampling] = {
    "on": Sampling(max_tokens=1024, temperature=0.6, top_p=0.95),
    "off": Sampling(max_tokens=512),
}
LONG: Mapping[Mode, Sampling] = {
    mode: replace(sampling, max_tokens=32_768) for mode, sampling in SHORT.items()
}
BY = ("likelihood", "byte_likelihood")  # of a choice, and of each of its bytes
OWN_FILE: Mapping[Mode, Sampling] = {"on": GREEDY, "off": GREEDY}

TASKS: dict[str, Task] = {
    "word_problems": Task(
        summary="arithmetic in stories of a few steps, of the generated world",
        function="fretsaw.tasks.word_problems:from_options",
        options=("steps", "max_value", "phrasing"),
        sampling={"on": GREEDY, "off": GREEDY},
        licence="Apache-2.0, generated here",
    ),
    "long_context": Task(
        summary="something to find in a long text, generated after RULER",
        function="fretsaw.tasks.long_context:from_options",
        options=("words", "kind"),
        sampling={"on": replace(GREEDY, max_tokens=512), "off": GREEDY},
        licence="Apache-2.0, generated here",
    ),
    "gsm8k": Task(
        summary="GSM8K: word problems of grade-school mathematics",
        function="fretsaw.tasks.arithmetic:read_gsm8k",
        source="https://github.com/openai/grade-school-math (test.jsonl)",
        sampling=SHORT,
        licence="MIT",
    ),
    "svamp": Task(
        summary="SVAMP: one-step word problems with misleading numbers",
        function="fretsaw.tasks.arithmetic:read_svamp",
        source="https://github.com/arkilpatel/SVAMP",
        sampling=SHORT,
        licence="MIT",
    ),
    "aqua": Task(
        summary="AQuA-RAT: algebra with five choices",
        function="fretsaw.tasks.choice:read_aqua",
        source="https://github.com/google-deepmind/AQuA (test.json)",
        options=("by",),
        sampling=SHORT,
        licence="Apache-2.0",
    ),
    "math500": Task(
        summary="MATH-500, and MATH itself: competition problems with an answer in a box",
        function="fretsaw.tasks.competition:read_math",
        source="https://huggingface.co/datasets/HuggingFaceH4/MATH-500",
        sampling=LONG,
        licence="MIT",
    ),
    "aime": Task(
        summary="AIME: problems whose answer is 0 to 999",
        function="fretsaw.tasks.competition:read_aime",
        source="https://huggingface.co/datasets/math-ai/aime25",
        sampling=LONG,
        licence="of the MAA",
    ),
    "gpqa": Task(
        summary="GPQA: science questions of graduates, four choices in an order of their own",
        function="fretsaw.tasks.choice:read_gpqa",
        source="https://huggingface.co/datasets/Idavidrein/gpqa",
        options=("by",),
        sampling=LONG,
        licence="CC BY 4.0",
    ),
    "mbpp": Task(
        summary="MBPP: short Python functions by a sentence and three tests",
        function="fretsaw.tasks.mbpp:read",
        source="https://github.com/google-research/google-research/tree/master/mbpp (mbpp.jsonl)",
        sampling=LONG,
        licence="CC BY 4.0",
    ),
    "humaneval": Task(
        summary="HumanEval: Python functions by signature and docstring",
        function="fretsaw.tasks.humaneval:read",
        source="https://github.com/openai/human-eval (data/HumanEval.jsonl.gz, unpacked)",
        sampling=LONG,
        licence="MIT",
    ),
    "livecodebench": Task(
        summary="LiveCodeBench's format: programs by input and output, or a function's values",
        function="fretsaw.tasks.livecodebench:read",
        source="https://huggingface.co/datasets/livecodebench/code_generation_lite",
        sampling=LONG,
        licence="CC, says its card",
    ),
    "bfcl": Task(
        summary="BFCL: function calls, one or several, or none where no function fits",
        function="fretsaw.tasks.bfcl:read",
        source="the package bfcl-eval: data/BFCL_v4_CATEGORY.json, possible_answer/ beside it",
        sampling=SHORT,
        licence="Apache-2.0",
    ),
    "mt_bench": Task(
        summary="MT-Bench: questions of two turns, rated by a judge",
        function="fretsaw.tasks.mt_bench:read",
        source="https://github.com/lm-sys/FastChat (fastchat/llm_judge/data; question.jsonl)",
        sampling=SHORT,
        figures="fretsaw.tasks.mt_bench:figures",
        licence="Apache-2.0",
    ),
    "arena_hard": Task(
        summary="Arena-Hard: answers beside a baseline's, judged in both orders",
        function="fretsaw.tasks.pairs:read_arena_hard",
        source="https://github.com/lmarena/arena-hard-auto (data/arena-hard-v0.1/question.jsonl)",
        sampling=LONG,
        figures="fretsaw.tasks.pairs:win_rate",
        licence="Apache-2.0",
    ),
    "judgebench": Task(
        summary="JudgeBench: the model judges pairs with a right answer, in both orders",
        function="fretsaw.tasks.pairs:read_judgebench",
        source="https://github.com/ScalerLab/JudgeBench (data)",
        sampling=LONG,
        figures="fretsaw.tasks.pairs:pair_accuracy",
        licence="MIT",
    ),
    "ifeval": Task(
        summary="IFEval: instructions that a program can verify",
        function="fretsaw.tasks.ifeval:read",
        options=("rules",),
        source="https://github.com/google-research/google-research (instruction_following_eval)",
        sampling=SHORT,
        figures="fretsaw.tasks.ifeval:figures",
        licence="Apache-2.0",
    ),
    "mmlu": Task(
        summary="multiple choice in the form of MMLU and MMLU-Pro",
        function="fretsaw.tasks.choice:read_mmlu",
        source="https://huggingface.co/datasets/cais/mmlu",
        options=("by",),
        sampling=SHORT,
        licence="MIT",
    ),
}


def named_task(task: str) -> tuple[Task, dict[str, str]]:
    """Return the row that is named and its options; raise ValueError for what there is not."""
    name, _, arguments = task.partition(":")
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise ValueError(f"task {task!r}: unknown; use {known}, or a JSONL file of your own")
    row = TASKS[name]
    words = [word.partition("=") for word in arguments.split(",") if word]
    options = {key: value for key, _, value in words}
    for key in options:
        if key not in row.options:
            known = f"it has {', '.join(row.options)}" if row.options else "it has none"
            raise ValueError(f"task {task!r}: no option {key!r}; {known}")
    return row, options


def load_problems(
    task: str,
    num_problems: int,
    *,
    seed: int,
    split: world.Split = "heldout",
    file: Path | None = None,
    setting: str = "num_problems",
    may_choose: bool = False,
) -> list[Problem]:
    """Return the problems of a task; all of `file` where there is one.

    A file is the user's own but for tasks of published sets, which read it. Raises ValueError for
    an unknown task, for options that are not the task's, for a file that is missing or empty, and
    where the task has fewer problems than `setting` asks for.
    """
    row, options = named_task(task) if task or file is None else (None, {})
    if "by" in options and not may_choose:
        raise ValueError(f"task {task!r}: by is for `fretsaw eval`; here answers are written")
    if file is not None:
        if row is not None and row.source:
            own = {name: value for name, value in options.items() if name != "by"}
            problems = row.load()(file, **own)
        else:
            problems = read_problems(file)
        if not problems:
            raise ValueError(f"{file}: nothing in it; give a file with rows")
        return problems
    assert row is not None, "a task is named, or a file is given"
    if row.source:
        name = task.partition(":")[0]
        raise ValueError(
            f"task {task!r}: reads a file; get it from {row.source} ({row.licence}) and write "
            f"{name}:file=PATH"
        )
    try:
        return row.load()(num_problems, seed, split, options) if num_problems else []
    except TooFew as error:
        raise ValueError(f"{setting}: {num_problems}; {task!r} has {error}") from None
    except BadOption as error:
        raise ValueError(f"task {task!r}: {error}") from None


def split_files(text: str) -> tuple[str, list[Path]]:
    """Return what `--task` names without the files, and the files in the order of their tasks.

    Several tasks are joined by " + "; the user's own files come after all others.
    """
    names, files, own = [], [], []
    for word in filter(None, (part.strip() for part in text.split(" + "))):
        name, has_file, path = word.partition("file=")
        if word.endswith((".jsonl", ".json", ".parquet")) and not has_file:
            own.append(Path(word))
            continue
        names.append(name.rstrip(":,"))
        if has_file:
            files.append(Path(path))
    return " + ".join(names), files + own


@dataclass(frozen=True)
class AskedTask:
    """A task that is put to models: its problems, and what answers are drawn with."""

    name: str
    problems: list[Problem]
    sampling: Mapping[Mode, Sampling]
    figures: str = ""  # as `Task` has them
    by: str = ""  # one of BY where the likeliest choice counts and nothing is written


def asked_tasks(
    text: str, files: Mapping[str, Path], num_problems: int, *, limit: int = 0, seed: int
) -> list[AskedTask]:
    """Return every task that is named, with its file of `files`, and the user's own files after.

    A published set takes the first file that is left, so they stand in the order of the tasks. Of
    each file the first `limit` problems are taken, 0 for all.
    """
    left, tasks = list(files.values()), []
    for name in filter(None, (word.strip() for word in text.split(" + "))):
        row, options = named_task(name)
        file = left.pop(0) if row.source and left else None
        problems = load_problems(name, num_problems, seed=seed, file=file, may_choose=True)
        chosen = problems[: limit or None] if row.source else problems
        tasks.append(AskedTask(name, chosen, row.sampling, row.figures, _by(name, options)))
    for file in left:
        own = load_problems("", 0, seed=seed, file=file)[: limit or None]
        tasks.append(AskedTask(file.name, own, OWN_FILE))
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"task {min(twice)!r}: named twice; name it once, or rename its file")
    return tasks


def _by(task: str, options: Mapping[str, str]) -> str:
    by = options.get("by", "")
    if "by" in options and by not in BY:
        raise ValueError(f"task {task!r}: by is {by!r}; write one of {', '.join(BY)}")
    return by


def drawn_with(
    sampling: Sampling, *, temperature: float | None, top_p: float | None, max_tokens: int
) -> Sampling:
    """Return a task's sampling with what was asked for in place of its own."""
    return replace(
        sampling,
        temperature=sampling.temperature if temperature is None else temperature,
        top_p=sampling.top_p if top_p is None else top_p,
        max_tokens=max_tokens or sampling.max_tokens,
    )
