"""Times of probe models in the engine that is deployed: a vLLM server, asked over HTTP.

Each model is written as a small DeciLM folder of random weights and served: by a command that is
started for it and ended after it, or by a server that somebody else runs. The whole batch is one
request of token ids. It is never sent twice: a time with a retry in it is no time.
"""

import contextlib
import http.client
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.puzzle.costs.probes import Models
from fretsaw.scenario.scenario import Scenario
from fretsaw.stage.progress import say

FIRST_PORT = 8100  # of servers that are already running, one more for each model
LOG_LINES = 5
GRACE_S = 30.0


class Deployed:
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
                path, port = self._write(name, blocks), _free_port()
                stack.callback(shutil.rmtree, path)
                server = stack.enter_context(
                    _Process(
                        _filled(self._command, model=path, port=port), path.with_suffix(".log")
                    )
                )
                url = _filled(self._url, model=path, port=port)
            else:
                server, url = None, self._address(name)
            client = _Client(
                url, server, self._deadline_s, self._config.vocab_size, self._check_stop
            )
            yield client.time

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
    if any("linear" in (b.attention, b.ffn) for blocks in models.values() for b in blocks):
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


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# --- a server -------------------------------------------------------------------------------------


class _Process:
    """A server started by a command, in a process group of its own that ends with it."""

    def __init__(self, command: str, log: Path):
        self._command, self._log = command, log

    def __enter__(self) -> "_Process":
        arguments = shlex.split(self._command)
        if shutil.which(arguments[0]) is None:
            raise ValueError(f"--server-command: {arguments[0]} is no program that can be run")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        return self

    def __exit__(self, *error: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)

    def check(self) -> None:
        """Raise with the server's last lines where it has ended."""
        if self._process.poll() is not None:
            raise ValueError(
                f"--server-command: the server ended with {self._process.returncode}: "
                f"{self.last_words()}"
            )

    def last_words(self) -> str:
        """Return the last lines of what the server wrote."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "\n".join(["", *lines[-LOG_LINES:]]) if lines else "it wrote nothing"


class _Client:
    """Asks one server, having waited until it answers and warmed it up."""

    def __init__(
        self,
        url: str,
        server: _Process | None,
        deadline_s: float,
        vocab_size: int,
        check: Callable[[], None],
    ):
        self._url, self._server = url.rstrip("/").removesuffix("/v1"), server
        self._deadline_s, self._vocab_size = deadline_s, vocab_size
        self._warm: set[Scenario] = set()
        self._wait(check)
        answer = self._call("/v1/models", None)
        match answer:
            case {"data": [{"id": str(model)}, *_]}:
                self._model = model
            case _:
                raise ValueError(
                    f"{self._url}: names no model at /v1/models; give a vLLM server's URL"
                )

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
        answer = self._call("/v1/completions", body)
        milliseconds = (time.perf_counter() - started) * 1000
        match answer:
            case {"usage": {"completion_tokens": int(made)}}:
                pass
            case _:
                made = "an unknown number of"
        asked = scenario.batch * max_tokens
        if made != asked:
            raise ValueError(
                f"{self._url}: {made} tokens came where {asked} were asked for, so its times do "
                "not count; use a server that knows `ignore_eos`, as vLLM does"
            )
        return milliseconds

    def _wait(self, check: Callable[[], None]) -> None:
        """Wait until the server listens, at most until the deadline; `check` may end it."""
        address, deadline = urlsplit(self._url), time.monotonic() + self._deadline_s
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        while True:
            check()
            if self._server is not None:
                self._server.check()
            try:
                left_s = max(0.1, min(2.0, deadline - time.monotonic()))
                socket.create_connection((address.hostname or "", port), left_s).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise self._no_answer(error) from error
            time.sleep(0.5)

    def _call(self, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        call = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(call, timeout=self._deadline_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")[:500]
            raise ValueError(
                f"{self._url}{path}: the server refused ({error.code}): {told}"
            ) from error
        except (ValueError, http.client.BadStatusLine) as error:  # no JSON, or no HTTP at all
            raise ValueError(
                f"{self._url}{path}: what answers speaks no JSON; give a vLLM server's URL"
            ) from error
        except (
            OSError,
            http.client.HTTPException,
        ) as error:  # URLError, a timeout, a connection that broke
            time.sleep(1)  # so that a server that is ending has ended
            if self._server is not None:
                self._server.check()
            raise self._no_answer(error) from error

    def _no_answer(self, error: Exception) -> ValueError:
        words = f"; it last wrote: {self._server.last_words()}" if self._server else ""
        return ValueError(
            f"{self._url}: no answer within {self._deadline_s:g} s ({error}); check the address "
            f"and that the server runs, or raise --server-deadline-s{words}"
        )
