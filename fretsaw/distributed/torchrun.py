"""torchrun, with the exit codes of the other commands and who failed in one sentence.

python -m fretsaw.distributed.torchrun --nproc-per-node 2 -m fretsaw distill ...
"""

import signal
import sys
from collections.abc import Mapping, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

EXIT_USER, EXIT_INTERRUPTED = 2, 75


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; return 75 where the processes stopped because they were asked to."""
    try:
        run(parse_args([*arguments]))
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
