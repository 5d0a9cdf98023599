"""The command line: a literal table of commands, each imported only when it is called.

Exit codes: 0 done, 2 the user's input, 75 interrupted and resumable, 1 our fault.
"""

import difflib
import functools
import importlib
import keyword
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fretsaw.stage.exit_codes import EXIT_INTERRUPTED, EXIT_USER

# By name: the file of commands/ that holds the function of that name, and what it does.
COMMANDS = {
    "compress": ("jobs", "a checkpoint and a target in, a faster child and a report out"),
    "run": ("jobs", "run a recipe: `tiny`, `stories`, or your own .py file"),
    "plan": ("plan", "what a compression or a recipe will need and reach, before it runs"),
    "status": ("look", "what a run is doing: stage, step, ETA, metrics, errors"),
    "lineage": ("look", "where an artifact came from"),
    "inspect": ("look", "what a checkpoint is made of, layer by layer"),
    "doctor": ("doctor", "what a checkpoint would learn of rows, and what is wrong with it"),
    "search-table": ("search_table", "the exact search in a table of other measurements"),
    "bench-server": ("bench_server", "what clients of a server see: latency and tokens/s"),
    "import": ("import_gguf", "a GGUF file as a checkpoint folder"),
    "export": ("export", "a checkpoint as transformers, vLLM, llama.cpp or mlx-lm take it"),
    "generate": ("talk", "continue a prompt, or answer many of a file"),
    "chat": ("talk", "talk to a chat checkpoint, with reasoning on or off"),
    "serve": ("serve", "answer over HTTP as OpenAI's API does, with a chat page"),
}
USAGE = """\
usage: fretsaw COMMAND [--help] [...]

Compress a Llama checkpoint to a target on your hardware, in one command:

  fretsaw compress CHECKPOINT --data text.txt --target "1.5x decode" --out RUN

Then teach the child to reason when asked (sft, rl), and talk to it (chat). All of it in small:

  fretsaw run tiny --out RUN

whole jobs
{whole}

stages, each reading folders and writing one
{stages}

Every stage goes on after an interruption by the same command, and skips what is done.
`fretsaw COMMAND --help` explains a command's settings.
"""


def run() -> NoReturn:
    """Be the command `fretsaw`, to the end of the process."""
    from fretsaw.stage.peers import end_process

    end_process(main)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; turn what the user did wrong into one sentence and exit code 2."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"fretsaw {version('fretsaw')}")
        return 0
    from fretsaw.pipeline.walk import StageFailed
    from fretsaw.stage.execute import Interrupted
    from fretsaw.stage.peers import Peers, is_echo
    from fretsaw.stage.progress import say

    peers = Peers.from_environment()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        name = spelled_out(argv)
        _refuse_peers(name, peers.size)
        command(name)(argv[1:])
    except StageFailed as failed:
        return failed.code if failed.code > 0 else 1
    except (Interrupted, KeyboardInterrupt):
        say("fretsaw: interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read the output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit:
        raise
    except BaseException as error:  # torch's errors of checkpoints are no Exceptions
        sentence = _sentence(error)
        if os.environ.get("FRETSAW_DEBUG") or sentence is None:
            raise
        where = f" (rank {peers.rank})" if peers.rank else ""
        if not is_echo(error):
            print(f"fretsaw{where}: {sentence}", file=sys.stderr)
        return 1 if _is_failed_answer(error) else EXIT_USER
    return 0


def _sentence(error: BaseException) -> str | None:
    """Return what can be told in one sentence; None for a fault of ours."""
    from fretsaw.stage import file_errors, memory_errors

    is_our_own = isinstance(error, FileNotFoundError | PermissionError) and error.filename is None
    is_told = isinstance(error, ValueError) or is_our_own or _is_failed_answer(error)
    refused = file_errors.sentence_of(error) or memory_errors.sentence_of(error)
    return refused or (str(error) if is_told else None)


def _is_failed_answer(error: BaseException) -> bool:
    """Whether the model could not answer, such as one whose weights are broken."""
    from fretsaw.engine.sequence import RequestFailed

    return isinstance(error, RequestFailed)


def spelled_out(argv: Sequence[str]) -> str:
    """Return the command that is meant: two have a short spelling, told by what follows it."""
    name, *rest = argv
    if name == "search" and any(word.split("=")[0] in ("--library", "--limit") for word in rest):
        return "search-table"
    if name == "bench" and rest and not rest[0].startswith("-"):
        return "bench-server"
    return name


def _refuse_peers(name: str, num_processes: int) -> None:
    """Raise where torchrun starts several of what is one process's work."""
    from fretsaw.pipeline.kinds import STAGES

    together = [stage for stage, kind in STAGES.items() if kind.is_distributed]
    if num_processes > 1 and name not in (*together, "stage"):
        raise ValueError(
            f"{name}: torchrun starts {num_processes} processes, but this runs in one; start it "
            f"without torchrun (those that train run in several: {', '.join(together)})"
        )


def _interrupt(signal_number: int, frame: object) -> None:
    raise KeyboardInterrupt


def usage() -> str:
    """Return the overview that `fretsaw --help` prints."""
    from fretsaw.pipeline.kinds import STAGES

    def rows(summaries: dict[str, str]) -> str:
        return "\n".join(f"  {name:<14}{text}" for name, text in summaries.items())

    stages = {name: kind.summary for name, kind in STAGES.items()}
    whole = {name: summary for name, (_, summary) in COMMANDS.items()}
    return USAGE.format(whole=rows(whole), stages=rows(stages))


def command(name: str) -> Callable[[list[str]], None]:
    """Return the function behind a command's name."""
    from fretsaw.pipeline.kinds import STAGES

    if name in COMMANDS:
        room, _ = COMMANDS[name]
        function = name.replace("-", "_") + "_" * keyword.iskeyword(name)
        return getattr(importlib.import_module(f"fretsaw.commands.{room}"), function)
    if name in STAGES or name == "stage":
        from fretsaw.commands import stage

        return stage.stage_process if name == "stage" else functools.partial(stage.stage, name)
    near = difflib.get_close_matches(name, [*COMMANDS, *STAGES], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no command {name!r}; {hint}`fretsaw --help` lists them")
