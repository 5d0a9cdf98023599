"""Many prompts from a file, answered into a JSONL file that an interrupted run goes on with.

Rows are written as they end, so not in order; each says which prompt and which sample it is. What
made them stands beside them in `OUT.settings.json`, so that a run with others is refused. Torch
comes with the model, so that what is answered already is told without it.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import Mode, split_reasoning
from fretsaw.data.conversation import read_prompt, read_tools
from fretsaw.data.rows import read_objects
from fretsaw.data.text_files import read_lines
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request, RequestFailed
from fretsaw.rollout.sample import sample_seed
from fretsaw.stage.own_file import read_json, read_jsonl
from fretsaw.stage.progress import Progress, say
from fretsaw.stage.whole import write_json, write_text

if TYPE_CHECKING:
    from fretsaw.talk.loaded import LoadedModel


@dataclass(frozen=True)
class Asked:
    """A prompt of the file: plain text to continue, or a conversation to answer."""

    id: str
    prompt: str | tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()  # that may be called, as OpenAI's API describes them


def read_prompts(path: Path) -> list[Asked]:
    """Read prompts: a .txt with one a line, or .jsonl or .parquet rows of `prompt` or `messages`.

    A row's `id`, or else its number, tells its answers; `messages` may come with `tools`. Raises
    ValueError where an id is used twice.
    """
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise ValueError(f"{path}: no such file; check the path")
        lines = (text for _, text in read_lines(path))
        asked = [Asked(str(number), line) for number, line in enumerate(lines) if line.strip()]
    else:
        asked = [
            _read_row(where, row, number) for number, (where, row) in enumerate(read_objects(path))
        ]
    if not asked:
        raise ValueError(f"{path}: no prompts; write one a line, or rows of prompt or messages")
    ids = set()
    for one in asked:
        if one.id in ids:
            raise ValueError(f"{path}: two prompts have the id {one.id!r}; make them different")
        ids.add(one.id)
    return asked


def _read_row(where: str, row: Any, number: int) -> Asked:
    id = str(number if row.get("id") is None else row["id"])
    if isinstance(row.get("prompt"), str) and row.get("messages") is None:
        return Asked(id, row["prompt"])
    return Asked(id, read_prompt(row, where), read_tools(row, where))


def num_unanswered(
    prompts: Path,
    out: Path,
    sampling: Sampling,
    *,
    mode: Mode | None = None,
    num_samples: int = 1,
    origin: str = "",
) -> int:
    """Return how many answers `generate_file` would ask for; no model is needed, nothing written.

    Raises ValueError where `out` was made with other settings, or by something else.
    """
    asked = read_prompts(prompts)
    done = _keys(_answered(out, _settings(asked, sampling, mode, origin)))
    return sum((one.id, sample) not in done for one in asked for sample in range(num_samples))


def generate_file(
    model: "LoadedModel",
    prompts: Path,
    out: Path,
    sampling: Sampling,
    *,
    mode: Mode | None = None,
    num_samples: int = 1,
    origin: str = "",
) -> int:
    """Answer every prompt `num_samples` times into `out`; return how many answers were written.

    With a `mode`, plain prompts are put as a user's turn. What is in `out` already is kept, but for
    answers that failed: their rows say why, and another run asks again. Raises ValueError for
    prompts that do not fit the model, before anything is computed, and `RequestFailed` where every
    answer failed.
    """
    asked = read_prompts(prompts)
    requests, openings = {}, {}
    for number, one in enumerate(asked):
        try:
            token_ids, openings[one.id] = _prompt(model, one, mode)
            request = model.request(token_ids, sampling)
        except ValueError as error:
            raise ValueError(f"{prompts}: prompt {one.id}: {error}") from error
        for sample in range(num_samples):
            seed = sample_seed(sampling.seed, number, sample)
            own = dataclasses.replace(request.sampling, seed=seed)
            requests[one.id, sample] = dataclasses.replace(request, sampling=own)
    done = _go_on(out, _settings(asked, sampling, mode, origin))
    left = [key for key in requests if key not in done]
    by_id = {one.id: one for one in asked}
    total = len(asked) * num_samples
    progress = Progress("generate")
    progress.start("answering", total, step=total - len(left), unit="answer")
    failed: list[str] = []
    with out.open("a", encoding="utf-8") as file:
        opened = [openings[id] for id, _ in left]
        answers = _answers(model, [requests[key] for key in left], opened, sampling)
        for count, (index, answer) in enumerate(answers, 1):
            id, sample = left[index]
            seed = requests[id, sample].sampling.seed
            row = _row(by_id[id], sample, answer, seed)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            progress.step(total - len(left) + count)
            if answer.error is not None:
                failed.append(f"prompt {id}: {answer.error}")
    progress.close()
    if failed:
        told = f"{len(failed)} of {len(left)} answers failed, the first of {failed[0]}"
        if len(failed) == len(left):
            raise RequestFailed(f"generate: {told}")
        say(f"generate: {told}; the same command asks them again")
    return len(left)


@dataclass(frozen=True)
class _Answer:
    text: str
    num_tokens: int
    reason: str  # why it ended: "stop", "length" or "error"
    error: str | None  # why it failed, where it did


def _answers(
    model: "LoadedModel", requests: Sequence[Request], openings: Sequence[str], sampling: Sampling
) -> Iterator[tuple[int, _Answer]]:
    """Yield answers with the index of their request, as they end, what opens them included."""
    streams = [
        model.text_stream(request.token_ids, sampling, opening)
        for request, opening in zip(requests, openings, strict=True)
    ]
    texts, counts = list(openings), [0] * len(requests)
    made = model.engine.generate(
        requests, is_enough=lambda index: streams[index].stopped_by is not None
    )
    with contextlib.closing(made) as events:
        for event in events:
            index, reason = event.request, event.finish_reason
            stream = streams[index]
            counts[index] += event.token_id is not None
            if event.token_id is not None and reason != "stop":
                texts[index] += stream.feed([event.token_id])
            if reason is not None:
                texts[index] += stream.flush()
            if stream.stopped_by is not None and event.error is None:
                reason = "stop"
            if reason is not None:
                yield index, _Answer(texts[index], counts[index], reason, event.error)


def _prompt(model: "LoadedModel", one: Asked, mode: Mode | None) -> tuple[tuple[int, ...], str]:
    """Return a prompt's ids, and what they have written of the answer already."""
    if isinstance(one.prompt, str) and mode is None:
        return model.text_ids(one.prompt), ""
    turns = (Message("user", one.prompt),) if isinstance(one.prompt, str) else one.prompt
    format, mode = model.chat_format, mode or "on"
    return format.prompt_ids(turns, mode, one.tools), format.opening(mode)


def _row(one: Asked, sample: int, answer: _Answer, seed: int) -> dict[str, Any]:
    reasoning, rest = split_reasoning(answer.text)
    given = {"reasoning": reasoning, "answer": rest} if reasoning is not None else {}
    error = {} if answer.error is None else {"error": answer.error}
    key = "prompt" if isinstance(one.prompt, str) else "messages"
    return {
        "id": one.id,
        "sample": sample,
        key: _as_json(one.prompt),
        "text": answer.text,
        **given,
        "finish_reason": answer.reason,
        **error,
        "num_tokens": answer.num_tokens,
        "seed": seed,
    }


def _as_json(prompt: str | tuple[Message, ...]) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [
        {
            "role": message.role,
            "content": message.content,
            **({"tool_calls": calls} if (calls := _calls(message)) else {}),
        }
        for message in prompt
    ]


def _calls(message: Message) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]


# --- going on -------------------------------------------------------------------------------------


def _settings(
    asked: Sequence[Asked], sampling: Sampling, mode: Mode | None, origin: str
) -> dict[str, Any]:
    """Return what decides the answers, as JSON gives it back."""
    settings = {
        "checkpoint": origin,
        "prompts": [[one.id, _as_json(one.prompt), *one.tools] for one in asked],
        "thinking": mode,
        **dataclasses.asdict(sampling),
    }
    return json.loads(json.dumps(settings))


def _go_on(out: Path, settings: dict[str, Any]) -> set[tuple[str, int]]:
    """Return the (id, sample) that `out` has already; it is begun where it is not there.

    A line cut short by a kill is taken off, and so are answers that failed.
    """
    rows = _answered(out, settings)
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(_beside(out), settings)
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return _keys(rows)


def _answered(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of answers that `out` has and that did not fail; only reads.

    Raises ValueError where `out` was made with other settings, or by something else.
    """
    if not out.exists():
        return []
    beside = _beside(out)
    if not beside.is_file():
        raise ValueError(f"{out}: exists, and was not written by this command; give another --out")
    plain = dataclasses.asdict(Sampling())  # of files that do not name a setting
    before = plain | read_json(beside, remedy=f"delete it and {out} to begin again")
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"{out}: was begun with other {', '.join(changed)}; give another --out, or delete it "
            "to begin again"
        )
    rows = read_jsonl(out, {"id": object, "sample": int})  # what cannot be read is sampled again
    return [row for row in rows if row.get("finish_reason") != "error"]


def _keys(rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, int]]:
    return {(row["id"], row["sample"]) for row in rows}


def _beside(out: Path) -> Path:
    """Return where the settings of a file of answers stand."""
    return out.with_name(out.name + ".settings.json")
