"""LangChain's chat models against a real server: answers, streams, the toggle, the reasoning.

    python benchmarks/langchain_client.py --server .venv/bin/python [--checkpoint CHAT_MODEL]

Runs in an environment of its own that has langchain-openai and langchain-deepseek; `--server` is
the interpreter of the one that has Fretsaw. Without a checkpoint, the small one of the tests is
made, which knows its answers by heart. `ChatOpenAI` drops reasoning by design; `ChatDeepSeek` reads
it, in streams too.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_deepseek import ChatDeepSeek  # pyright: ignore[reportMissingImports]
from langchain_openai import ChatOpenAI  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
MAKE = """
import pathlib, sys
sys.path.insert(0, "tests")
from serving import write_toggled
write_toggled(pathlib.Path(sys.argv[1]))
"""
QUESTION = "What is 2 + 3?"
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@contextmanager
def serving(python: str, checkpoint: Path) -> Iterator[str]:
    """Start a server of the checkpoint; yield its address."""
    command = [python, "-m", "fretsaw", "serve", str(checkpoint), "--port", "0", "--name", "served"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def check(kind: Any, url: str) -> None:
    """Check one chat model class: an answer, a stream, both modes, a refusal."""
    name = kind.__name__
    is_deepseek = kind is ChatDeepSeek
    base = "api_base" if is_deepseek else "base_url"
    own = {"model": "served", "api_key": "any", "temperature": 0, base: f"{url}/v1"}
    on, off = kind(**own), kind(**own, extra_body=OFF)
    answers = {}
    for mode, model in (("on", on), ("off", off)):
        message = model.invoke(QUESTION)
        reasoning = message.additional_kwargs.get("reasoning_content") or ""
        pieces = list(model.stream(QUESTION))
        text = "".join(piece.content for piece in pieces)
        streamed = "".join(p.additional_kwargs.get("reasoning_content") or "" for p in pieces)
        assert message.content, f"{name} {mode}: an empty answer"
        assert text == message.content, f"{name} {mode}: {text!r} streamed, {message.content!r} not"
        assert streamed == reasoning, f"{name} {mode}: {streamed!r} streamed, {reasoning!r} not"
        assert "<think>" not in message.content, f"{name} {mode}: tags in the answer"
        assert bool(reasoning) == (is_deepseek and mode == "on"), f"{name} {mode}: {reasoning!r}"
        assert message.usage_metadata["output_tokens"] > 0, f"{name} {mode}: no usage"
        assert message.response_metadata["finish_reason"] == "stop", f"{name} {mode}: not ended"
        answers[mode] = message.content
        print(f"{name:14}{mode:5}{message.content!r}  reasoning {reasoning!r}")
    counted = [p.usage_metadata for p in on.stream(QUESTION, stream_usage=True) if p.usage_metadata]
    assert counted, f"{name}: no usage in the stream"
    said = off.invoke([("system", "detailed thinking off"), ("human", QUESTION)])
    assert said.content == answers["off"], f"{name}: the system text does not switch it off"
    turns = [("human", "Hello!"), on.invoke("Hello!"), ("human", QUESTION)]
    assert on.invoke(turns).content, f"{name}: no second turn"
    refused = ""
    try:
        kind(**own, max_tokens=10**9).invoke(QUESTION)
    except Exception as error:
        refused = str(error)
    assert "give at most" in refused, f"{name}: beyond the context, and told {refused!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description="LangChain against fretsaw serve")
    parser.add_argument("--server", required=True, help="the interpreter that has Fretsaw")
    parser.add_argument("--checkpoint", type=Path, help="a chat checkpoint")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        checkpoint = options.checkpoint or Path(made)
        if options.checkpoint is None:
            subprocess.run([options.server, "-c", MAKE, made], check=True, cwd=ROOT)
        with serving(options.server, checkpoint) as url:
            for kind in (ChatOpenAI, ChatDeepSeek):
                check(kind, url)
    print("LangChain: answers, streams, toggle, reasoning and refusals as they must be")


if __name__ == "__main__":
    main()
