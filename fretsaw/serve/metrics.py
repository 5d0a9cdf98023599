"""Counts and times of a server, as Prometheus reads them."""

import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fretsaw.engine.stats import Stats

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Histogram:
    """How many values lie below each bound, with their sum."""

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        """Yield the samples of the text format."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """What a server has done since it started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.disconnects = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.first_token = Histogram(LATENCIES)
        self.inter_token = Histogram(LATENCIES)
        self.whole = Histogram(LATENCIES)

    def render(
        self,
        stats: Stats,
        num_open: int,
        processes: Mapping[str, int],
        *,
        num_failed: int,
        num_restarts: int,
    ) -> str:
        """Return the text of /metrics; `processes` are the ids of those whose memory is told."""
        requests = {
            f'path="{path}",status="{status}"': count
            for (path, status), count in sorted(self.requests.items())
        }
        resident = {f'process="{name}"': resident_bytes(id) for name, id in processes.items()}
        families = (
            _labelled("requests_total", "counter", "HTTP requests answered.", requests),
            _counter("disconnects_total", "Clients that left early.", self.disconnects),
            _counter("failed_requests_total", "Requests of which an answer failed.", num_failed),
            _counter("engine_restarts_total", "Engines lost and replaced.", num_restarts),
            _counter("prompt_tokens_total", "Tokens of prompts.", self.prompt_tokens),
            _counter("generated_tokens_total", "Tokens generated.", self.generated_tokens),
            _histogram("first_token_seconds", "From request to first token.", self.first_token),
            _histogram("inter_token_seconds", "Between tokens of an answer.", self.inter_token),
            _histogram("answer_seconds", "From request to its last token.", self.whole),
            _gauge("open_answers", "Answers not finished.", num_open),
            _gauge("running", "Sequences in the batch.", stats.num_running),
            _gauge("waiting", "Sequences that wait for a place.", stats.num_waiting),
            _gauge("pages_used", "KV pages that answers hold.", stats.pages_used),
            _gauge("pages_total", "KV pages there are.", stats.pages_total),
            _counter("prefill_tokens_total", "Prompt tokens run.", stats.prefill_tokens),
            _counter("prefill_seconds_total", "Seconds of prefill.", stats.prefill_s),
            _counter("decode_tokens_total", "Tokens decoded.", stats.decode_tokens),
            _counter("decode_seconds_total", "Seconds of decoding.", stats.decode_s),
            _counter(
                "prefix_hit_tokens_total",
                "Prompt tokens taken from the cache.",
                stats.prefix_hit_tokens,
            ),
            _counter("preemptions_total", "Sequences set back.", stats.num_preemptions),
            _gauge("weights_version", "Version of the weights.", stats.weight_version),
            _labelled("resident_bytes", "gauge", "Memory of the processes.", resident),
        )
        return "".join(families)


def _counter(name: str, text: str, value: float) -> str:
    return _family(name, "counter", text, [f"fretsaw_{name} {value}"])


def _gauge(name: str, text: str, value: float) -> str:
    return _family(name, "gauge", text, [f"fretsaw_{name} {value}"])


def _histogram(name: str, text: str, values: Histogram) -> str:
    return _family(name, "histogram", text, values.lines(f"fretsaw_{name}"))


def _labelled(name: str, kind: str, text: str, values: Mapping[str, float]) -> str:
    samples = (f"fretsaw_{name}{{{labels}}} {value}" for labels, value in values.items())
    return _family(name, kind, text, samples)


def _family(name: str, kind: str, text: str, samples: Iterable[str]) -> str:
    head = (f"# HELP fretsaw_{name} {text}", f"# TYPE fretsaw_{name} {kind}")
    return "".join(f"{line}\n" for line in (*head, *samples))


class Stopwatch:
    """The times of one request's answers."""

    def __init__(self, metrics: Metrics, num_answers: int):
        self._metrics = metrics
        self._begun = time.perf_counter()
        self._last: list[float | None] = [None] * num_answers

    def take(self, answer: int, num_tokens: int) -> None:
        """Note that an answer grew by some tokens now."""
        now, last = time.perf_counter(), self._last[answer]
        self._last[answer] = now
        self._metrics.generated_tokens += num_tokens
        if last is None:
            self._metrics.first_token.observe(now - self._begun)
        else:
            self._metrics.inter_token.observe((now - last) / max(num_tokens, 1))

    def stop(self) -> None:
        """Note that the last answer is whole."""
        self._metrics.whole.observe(time.perf_counter() - self._begun)


def resident_bytes(process: int) -> int:
    """Return the memory of a process, 0 where the platform does not tell."""
    statm = Path(f"/proc/{process}/statm")
    pages = int(statm.read_text().split()[1]) if statm.is_file() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") if pages else 0
