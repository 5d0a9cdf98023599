"""Times of probe models in the engine that is deployed: a vLLM server, asked over HTTP.

Each model is written as a small DeciLM folder of random weights and served: by a command that is
started for it and ended after it, or by a server that somebody else runs. The whole batch is one
request of token ids. It is never sent twice: a time with a retry in it is no time.
"""

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.client.openai import Client, Fault
from fretsaw.client.server_process import ServerProcess, free_port, wait_until_listening
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.puzzle.costs.probes import Models
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.progress import say

FIRST_PORT = 8100  # of servers that are already running, one more for each model


class ServerTimes:
    """Opens models by serving them; `command` "" means that they are served at `url` already.

    In the command `{model}` stands for the folder, in both `{port}` for a port, and in the address
    of servers that run already `{index}` for the model's number. Raises ValueError where they are
    not understood, where no server answers within `deadline_s`, and with a server's last lines
    where it ends by itself. `check` is called while a server is waited for, and may raise.
    """

    def __init__(
        self,
        config: ModelConfig,
        models: Models,
        *,
        folder: Path,
        parent: Path,
        scenario: Scenario,
        command: str,
        url: str,
        deadline_s: float,
        check: Callable[[], None],
    ):
        self._check_stop = check
        self._config, self._names = config, list(models)
        self._folder, self._parent, self._dtype = folder, parent, scenario.dtype
        self._command, self._url, self._deadline_s = command, url, deadline_s
        _check(command, url, models)
        self.hardware = {"device": scenario.device, "server": command or url}
        self.is_interleaved = not command  # servers started in turn do not stand side by side
        if not command:
            for name, blocks in models.items():
                say(f"cost: {self._write(name, blocks)} is expected at {self._address(name)}")

    @contextlib.contextmanager
    def open(
        self, name: str, blocks: Sequence[BlockConfig]
    ) -> Iterator[Callable[[Scenario, int], dict[str, float]]]:
        """Serve a model; yield what times it at a scenario, with prompts of the round's own."""
        with contextlib.ExitStack() as stack:
            if self._command:
                path, port = self._write(name, blocks), free_port()
                stack.callback(shutil.rmtree, path)
                command = _filled(self._command, model=path, port=port)
                server = ServerProcess(command, path.with_suffix(".log"), "--server-command")
                stack.enter_context(server)
                url = _filled(self._url, model=path, port=port)
            else:
                server, url = None, self._address(name)
            served = _Served(
                url, server, self._deadline_s, self._config.vocab_size, self._check_stop
            )
            yield served.time

    def _write(self, name: str, blocks: Sequence[BlockConfig]) -> Path:
        import torch

        from fretsaw.model.decoder import Decoder
        from fretsaw.model.quantised import quantised

        path = self._folder / f"{self._names.index(name):02d}-{name.replace(' ', '-')}"
        if not (path / "config.json").is_file():
            torch.manual_seed(0)
            config = replace(self._config, blocks=tuple(blocks))
            decoder = quantised(Decoder(config.in_full).requires_grad_(False), config.blocks)
            self._folder.mkdir(exist_ok=True)
            checkpoint.save(decoder, path, like=self._parent, dtype=self._dtype)
        return path

    def _address(self, name: str) -> str:
        index = self._names.index(name)
        return _filled(self._url, index=index, port=FIRST_PORT + index)


def _check(command: str, url: str, models: Models) -> None:
    served = {kind.is_llamas for blocks in models.values() for b in blocks for kind in b.kinds}
    if False in served:
        raise ValueError(
            "cost: vLLM loads no linear subblocks, so they cannot be timed in it; leave them out "
            "of the space with --linear False"
        )
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"--server-url {url}: no address; write http://HOST:{{port}}")
    if command and "{model}" not in command:
        raise ValueError(
            f"--server-command {command!r}: names no {{model}}; write it where the folder goes, "
            "such as 'python -m vllm.entrypoints.openai.api_server --model {model} --port {port}'"
        )
    if not command and not any(field in url for field in ("{port}", "{index}")):
        raise ValueError(
            f"--server-url {url}: the same for all models; put {{port}} or {{index}} where they "
            "differ, or give a --server-command that starts one server after another"
        )


def _filled(template: str, **values: Any) -> str:
    for field, value in values.items():
        template = template.replace(f"{{{field}}}", str(value))
    return template


# --- one server -----------------------------------------------------------------------------------


class _Served:
    """One server that is timed, having waited until it answers."""

    def __init__(
        self,
        url: str,
        server: ServerProcess | None,
        deadline_s: float,
        vocab_size: int,
        check: Callable[[], None],
    ):
        self._client, self._server = Client(url, deadline_s=deadline_s), server
        self._deadline_s, self._vocab_size = deadline_s, vocab_size
        self._warm: set[Scenario] = set()

        def check_both() -> None:
            check()
            if server is not None:
                server.check()

        with self._with_last_words():
            wait_until_listening(self._client.url, deadline_s, check_both)
            self._model = self._client.first_model()

    def time(self, scenario: Scenario, round_index: int) -> dict[str, float]:
        """Return the milliseconds of each phase: all prompts read, and what more tokens add.

        The first output token comes from the prefill, so decoding makes one less.
        """
        if scenario.output_tokens < 2:
            raise ValueError(
                "scenario: out=1 decodes nothing after the prefill; give out=2 or more"
            )
        if scenario not in self._warm:
            self._complete(scenario, 2, "warm")
            self._warm.add(scenario)
        prefill_ms = self._complete(scenario, 1, f"prefill {round_index}")
        all_ms = self._complete(scenario, scenario.output_tokens, f"all {round_index}")
        share = scenario.output_tokens / (scenario.output_tokens - 1)
        decode_ms = max(all_ms - prefill_ms, 1e-3 * all_ms) * share  # noise makes no time negative
        return {"prefill_ms": prefill_ms, "decode_ms": decode_ms}

    def _complete(self, scenario: Scenario, max_tokens: int, seed: str) -> float:
        """Continue a batch of prompts that no cache has seen; return the milliseconds."""
        drawn = random.Random(f"{scenario} {seed}")
        shape = range(scenario.batch), range(scenario.prompt_tokens)
        body = {
            "model": self._model,
            "prompt": [[drawn.randrange(self._vocab_size) for _ in shape[1]] for _ in shape[0]],
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        }
        started = time.perf_counter()
        with self._with_last_words():
            answer = self._client.call("/v1/completions", body)
        milliseconds = (time.perf_counter() - started) * 1000
        match answer:
            case {"usage": {"completion_tokens": int(made)}}:
                pass
            case _:
                made = "an unknown number of"
        asked = scenario.batch * max_tokens
        if made != asked:
            raise ValueError(
                f"{self._client.url}: {made} tokens came where {asked} were asked for, so its "
                "times do not count; use a server that knows `ignore_eos`, as vLLM does"
            )
        return milliseconds

    @contextlib.contextmanager
    def _with_last_words(self) -> Iterator[None]:
        """Tell of a server that does not answer what it wrote, or that it has ended."""
        try:
            yield
        except Fault as fault:
            if fault.status:
                raise
            time.sleep(1)  # so that a server that is ending has ended
            if self._server is not None:
                self._server.check()
            words = f"; it last wrote: {self._server.last_words()}" if self._server else ""
            raise ValueError(
                f"{self._client.url}: no answer within {self._deadline_s:g} s ({fault.told}); "
                "check the address and that the server runs, or raise --server-deadline-s" + words
            ) from fault
