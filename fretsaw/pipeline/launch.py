"""A stage is a process, or several: this starts them, and is what each of them runs.

The request travels as a JSON file, so that any launcher that can run Python can run a stage.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fretsaw.pipeline.agreement import check_inputs
from fretsaw.pipeline.kinds import STAGES
from fretsaw.stage import artifact, own_file, whole
from fretsaw.stage.execute import execute, finish
from fretsaw.stage.peers import Peers
from fretsaw.stage.place import check_place
from fretsaw.stage.progress import say
from fretsaw.stage.settings import build
from fretsaw.stage.workers import HERE, Workers

REMEDY = "run the recipe again"
LAUNCH_SHAPE = {
    "stage": str,
    "settings": dict,
    "inputs": dict,
    "seed": int,
    "out": str,
    "device": str,
    "dtype": str,
    "force": bool,
    "workers": dict,
    "within": str,
}


def start(request: dict[str, Any], path: Path, launcher: str = "python") -> int:
    """Write the request and have the launcher run it; return its exit code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.write_json(path, request)
    process = subprocess.Popen([*_words(launcher), "-m", "fretsaw", "stage", str(path)])
    is_interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # Ctrl-C or SIGTERM, each is passed on: the stage saves, and ends
            is_interrupted = True
            process.terminate()
    if is_interrupted:
        raise KeyboardInterrupt
    return code


def _words(launcher: str) -> list[str]:
    """Return the launcher's words; `python` and `torchrun` are those of this very environment."""
    name, *options = shlex.split(launcher) or [""]
    if name == "python":
        return [sys.executable, *options]
    if name == "torchrun":
        return [sys.executable, "-m", "fretsaw.distributed.torchrun", *options]
    if shutil.which(name) is None:
        raise ValueError(f"launcher {launcher!r}: no program {name!r}; give python, torchrun, ...")
    return [name, *options]


def run_request(path: Path) -> None:
    """Execute the stage that a request file describes."""
    request = own_file.read_json(path, LAUNCH_SHAPE, remedy=REMEDY)
    fault = None if request["stage"] in STAGES else f"{request['stage']!r} is no stage"
    for name, value in request["inputs"].items():
        fault = fault or own_file.mismatch(value, str, f"input {name!r}")
    if fault:
        raise own_file.Damaged(f"{path}: damaged, {fault}; {REMEDY}")
    run_stage(
        request["stage"],
        build(STAGES[request["stage"]].settings, request["settings"]),
        {name: Path(value) for name, value in request["inputs"].items()},
        seed=request["seed"],
        out=Path(request["out"]),
        device=request["device"],
        dtype=request["dtype"],
        force=request["force"],
        workers=build(Workers, request["workers"]),
        within=request["within"],
    )


def run_stage(
    name: str,
    settings: Any,
    inputs: Mapping[str, Path],
    *,
    seed: int,
    out: Path,
    device: str,
    dtype: str,
    force: bool = False,
    workers: Workers = HERE,
    within: str = "",
) -> None:
    """Execute a stage in this process and those that torchrun started beside it, if any.

    `within` is the ticket of the run that it is a stage of. What is done, or refused, is found out
    before torch is imported, but where several processes must agree on it.
    """
    kind, peers = STAGES[name], Peers.from_environment()
    check_place(out)
    check_inputs(name, settings, inputs)
    if peers.size > 1:
        from fretsaw.distributed import mesh

        mesh.join(peers, device)
    request = artifact.StageRequest.of(name, settings, inputs, seed)
    is_there = not force and peers.on_first(lambda: finish(request, out, within=within))
    if is_there:
        say(f"{name}: done already in {out}")
        _leave(peers)
        return
    computes = kind.computes and getattr(settings, "engine", "") != "roofline"
    if computes:
        from fretsaw.training.precision import check_device

        check_device(device)
    if computes and "auto" in (device, dtype):
        device, dtype = peers.on_first(
            lambda: artifact.recorded_precision(out) or settle(device, dtype)
        )
    execute(
        kind.load(),
        request,
        settings,
        out,
        device=device,
        dtype=dtype,
        force=force,
        peers=peers,
        workers=workers,
        within=within,
    )
    _leave(peers)


def _leave(peers: Peers) -> None:
    """Leave the processes beside this one, if any."""
    if peers.size > 1:
        from fretsaw.distributed import mesh

        mesh.leave()


def settle(device: str, dtype: str) -> tuple[str, str]:
    """Return a device and a dtype for "auto"; torch is imported only where something is open."""
    if "auto" not in (device, dtype):
        return device, dtype
    from fretsaw.training.precision import settle as measure

    return measure(device, dtype)
