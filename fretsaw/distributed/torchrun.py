"""torchrun, with the exit codes of the other commands and who failed in one sentence.

python -m fretsaw.distributed.torchrun --nproc-per-node 2 -m fretsaw distill ...
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from fretsaw.stage.exit_codes import EXIT_INTERRUPTED, EXIT_USER

STRAGGLE_S = 30.0  # that the others have once the first process has stopped


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; return 75 where the processes stopped because they were asked to.

    torchrun itself kills what has not ended 30 s after a SIGTERM, but a step may take longer: here
    every stop is passed on, and what it means is for the processes to say.
    """
    options = parse_args([*arguments])
    options.signals_to_handle = "SIGHUP,SIGQUIT"
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _pass_on)
    try:
        run(options)
    except SignalException:
        return EXIT_INTERRUPTED
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if codes == {EXIT_INTERRUPTED}:
            return EXIT_INTERRUPTED
        if EXIT_USER in codes:  # that process has said what is wrong
            return EXIT_USER
        print(f"fretsaw: {describe(error.failures)}", file=sys.stderr)
        return 1
    return 0


def _pass_on(signal_number: int, frame: object) -> None:
    """Pass a stop on and wait for the processes, while more stops may come; then end the run."""
    started = children()
    for pid in started:
        os.kill(pid, signal.SIGTERM)
    until = None
    while left := started & children():
        if left < started:
            until = until or time.monotonic() + STRAGGLE_S
            if time.monotonic() > until:
                break
        time.sleep(0.1)
    raise SignalException("asked to stop", signal.Signals(signal_number))


def children() -> set[int]:
    """Return the processes that this one has started and that go on."""
    if Path("/proc/self/stat").exists():
        rows = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = stat.parent.name, stat.read_bytes().rpartition(b")")[2].decode()
            except OSError:  # gone this moment
                continue
            state, parent, *_ = rest.split()
            rows.append((pid, parent, state))
    else:
        listing = ["ps", "-A", "-o", "pid=,ppid=,stat="]
        told = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in told.splitlines()]
    own = str(os.getpid())
    return {int(pid) for pid, parent, state in rows if parent == own and state[0] not in "ZX"}


def describe(failures: Mapping[int, ProcessFailure]) -> str:
    """Say which processes failed and how, those first that failed of themselves.

    The others fail of the absence of the first, or get a SIGTERM from torchrun.
    """

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int]:
        code = item[1].exitcode
        return code == -signal.SIGTERM, code >= 0, item[1].timestamp

    ended = sorted(failures.items(), key=order)
    parts = [
        f"rank {rank} (pid {failure.pid}) "
        + (
            f"was killed by {failure.signal_name()}"
            if failure.exitcode < 0
            else f"ended with exit code {failure.exitcode}"
        )
        for rank, failure in ended
    ]
    return f"{'; '.join(parts)}; the same command goes on from the last saved state"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
