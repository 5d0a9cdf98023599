"""A stage's output folder: the one contract between stages.

A stage works in a hidden folder beside its output (`.NAME.partial`) and the folder takes its name
once it is complete, so an output is whole or absent. `manifest.json` is written last and says what
made it: stage, settings, inputs by hash, versions, seed, metrics, outputs by hash. "The manifest
exists, its files are there and its inputs still match" is the one meaning of done.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import re
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fretsaw.stage import own_file
from fretsaw.stage.hashes import hash_file, hash_json, read_hash
from fretsaw.stage.place import Refused
from fretsaw.stage.whole import old_name, settle_name, take_name, write_json

SCHEMA = 1
MANIFEST = "manifest.json"
REQUEST = "request.json"  # of a run that is not complete
PRECISION = "precision.json"  # the same: what it computes on
DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")
RESUME = "resume"  # state that only a continuing run needs
TO_GO_ON = (RESUME, REQUEST, PRECISION)  # gone when the artifact is complete
LIVE_FILES = ("metrics.jsonl", "status.json", "log.txt")  # kept, but not part of the result


MANIFEST_SHAPE = {
    "stage": str,
    "settings": dict,
    "inputs": dict,
    "outputs": dict,
    "seed": int,
    "versions": dict,
    "metrics": dict,
    "run": {"wall_s": own_file.NUMBER, "finished": str},
}
REQUEST_SHAPE = {"stage": str, "settings": dict, "inputs": dict, "seed": int}


@dataclass(frozen=True)
class StageRequest:
    """What an artifact is to be made of; two equal requests give equal artifacts."""

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, Path]
    seed: int
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, stage: str, settings: Any, inputs: Mapping[str, Path], seed: int) -> "StageRequest":
        """Build from a settings dataclass; paths are made absolute."""
        paths = {name: Path(path).absolute() for name, path in sorted(inputs.items())}
        own, plain = (
            json.loads(json.dumps(values))
            for values in (dataclasses.asdict(settings), _defaults(type(settings)))
        )
        return cls(stage, own, paths, seed, plain)

    def identity(self) -> dict[str, Any]:
        """Return what decides the result: everything but paths, which never enter a hash."""
        return {
            "stage": self.stage,
            "settings": self.settings,
            "inputs": {name: hash_path(path) for name, path in self.inputs.items()},
            "seed": self.seed,
        }


# --- hashes ---------------------------------------------------------------------------------------


def hash_path(path: Path) -> str:
    """Return the hash of an artifact (by its manifest), of a file, or of a foreign folder."""
    if (path / MANIFEST).is_file():
        return artifact_hash(read_manifest(path))
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    listing = [[str(p.relative_to(path)), p.stat().st_size, hash_file(p)] for p in files]
    return hash_json(listing)


def artifact_hash(manifest: Mapping[str, Any]) -> str:
    """Return the hash of what an artifact is: its manifest without `run` and without paths."""
    kept = {key: value for key, value in manifest.items() if key != "run"}
    kept["inputs"] = {name: entry["hash"] for name, entry in manifest["inputs"].items()}
    return hash_json(kept)


# --- reading --------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a finished artifact's manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: no {MANIFEST}, so this is no finished fretsaw artifact")
    remedy = f"remove {folder} and make it again"
    manifest = own_file.read_json(path, {"schema": int}, remedy=remedy)
    if manifest["schema"] != SCHEMA:
        raise ValueError(
            f"{path}: schema {manifest['schema']!r}, but this version reads {SCHEMA}; {remedy}"
        )
    fault = own_file.mismatch(manifest, MANIFEST_SHAPE)
    for name, entry in manifest["inputs"].items() if not fault else ():
        fault = fault or own_file.mismatch(entry, {"path": str, "hash": str}, f"input {name!r}")
    for name, digest in manifest["outputs"].items() if not fault else ():
        fault = fault or own_file.mismatch(digest, str, f"output {name!r}")
    if fault:
        raise own_file.Damaged(f"{path}: damaged, {fault}; {remedy}")
    return manifest


def read_output(folder: Path, name: str, shape: Any = dict) -> Any:
    """Return the JSON that a stage left in its folder, as its manifest knows it by sha256.

    Raises `own_file.Damaged` where it is not there, not of this shape, or not what was made.
    """
    is_finished = (folder / MANIFEST).is_file()
    digest = read_manifest(folder)["outputs"].get(name, "") if is_finished else ""
    return own_file.read_json(folder / name, shape, digest=digest)


def verified(path: Path) -> Path:
    """Return the path of a stage's file, once it is read and is what the manifest beside it says.

    Raises `own_file.Damaged` where it is not.
    """
    if (path.parent / MANIFEST).is_file():
        digest = read_manifest(path.parent)["outputs"].get(path.name)
        if not path.is_file():
            raise own_file.Damaged(f"{path}: not there; {own_file.AGAIN}")
        if digest not in (None, read_hash(path)):  # past the cache
            raise own_file.Damaged(own_file.CHANGED.format(path=path, remedy=own_file.AGAIN))
    return path


def partial_folder(out: Path) -> Path:
    """Return where the work on `out` goes on until it is complete."""
    return out.with_name(f".{out.name}.partial")


def staleness(out: Path, request: StageRequest) -> str | None:
    """Say why `out` is not the finished result of `request`, or None if it is; only reads.

    What a kill left of `out` is taken for what `settle` makes of it. Raises `Refused` where the
    folder is not ours to replace: it holds something else, or was made by another stage or with
    other settings.
    """
    found = found_as(out)
    if not found.exists():
        return "absent"
    if not (found / MANIFEST).is_file():
        if found.is_dir() and not any(found.iterdir()):
            return "absent"
        raise Refused(
            f"{out}: not empty and not a fretsaw artifact; it is left alone, choose another --out"
        )
    manifest = read_manifest(found)
    _refuse_other_settings(out, manifest, request)
    for name, path in request.inputs.items():
        recorded = manifest["inputs"].get(name, {}).get("hash")
        if recorded != hash_path(path):
            return f"its input {name} changed"
    missing = [name for name in manifest["outputs"] if not (found / name).is_file()]
    return f"{missing[0]} is missing" if missing else None


def found_as(out: Path) -> Path:
    """Return the folder that is `out` once `settle` was called; but for kills, `out` itself."""
    partial, old = partial_folder(out), old_name(out)
    if (partial / MANIFEST).is_file():
        return partial
    return old if old.is_dir() and not out.exists() else out


def _refuse_other_settings(
    out: Path, made: Mapping[str, Any], request: StageRequest, *, found: Path | None = None
) -> None:
    found = found or out
    if made["stage"] != request.stage:
        raise Refused(
            f"{found}: holds the result of {made['stage']!r}, not of {request.stage!r}; "
            "choose another --out"
        )
    wanted = {**request.settings, "seed": request.seed}
    # What an earlier version had no setting for, it did as the default does.
    before = {**_filled(made["settings"], request.defaults), "seed": made["seed"]}
    changed = [
        f"{key} {before.get(key)!r} -> {wanted.get(key)!r}"
        for key in sorted(wanted.keys() | before.keys())
        if wanted.get(key) != before.get(key)
    ]
    if changed:
        raise Refused(
            f"{found}: made with other settings ({'; '.join(changed)}); choose another --out, or "
            f"make it again {_remedy(out)}"
        )


def _defaults(kind: type) -> dict[str, Any]:
    """Return the defaults of a settings class, its parts' among them."""
    found = {}
    for field in dataclasses.fields(kind):
        value: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is not dataclasses.MISSING:
            found[field.name] = dataclasses.asdict(value) if _is_part(value) else value
    return found


def _is_part(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _filled(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those that they do not name at their defaults, in their parts too."""
    filled = {**defaults, **settings}
    for key, part in defaults.items():
        if isinstance(part, dict) and isinstance(filled[key], dict):
            filled[key] = _filled(filled[key], part)
    return filled


def _remedy(out: Path) -> str:
    for run in out.absolute().parents:
        if (run / "run.json").is_file():
            return f"with --force-from {out.absolute().relative_to(run)}"
    return "after removing that folder"


# --- writing --------------------------------------------------------------------------------------


def settle(out: Path) -> None:
    """End what a kill left of an output's last moments; for who holds it.

    A run that was killed between its manifest and its name is given the name.
    """
    settle_name(out)
    partial = partial_folder(out)
    if (partial / MANIFEST).is_file():
        take_name(partial, out)
        drop_resume_state(out)


def recorded_precision(out: Path) -> tuple[str, str] | None:
    """Return the device and dtype that an interrupted run of `out` was using."""
    path = partial_folder(out) / PRECISION
    if not path.is_file():
        return None
    remedy = "remove it; the next run settles on both again, or name them with --device and --dtype"
    told = own_file.read_json(path, [str], remedy=remedy)
    if len(told) != 2 or not DEVICE.fullmatch(told[0]) or told[1] not in ("fp32", "bf16"):
        raise own_file.Damaged(f"{path}: damaged, not a device and a dtype; {remedy}")
    return told[0], told[1]


def open_partial(
    out: Path,
    request: StageRequest,
    *,
    force: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Return the folder to work in, with the state of an interrupted run of the same request.

    Where the interrupted run had other settings it is refused (or discarded with `force`); where an
    input changed since, or nothing was saved yet, there is nothing to lose and it is discarded;
    `tell` is given a line that says so. Raises `own_file.Damaged` where it holds work and what the
    run was to make can't be read.
    """
    if out.exists() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise Refused(f"{out}: not empty and not a fretsaw artifact; choose another --out")
    partial = partial_folder(out)
    going_on = None if force else goes_on(out, request)
    if going_on:
        return partial
    if going_on is False and _holds_work(partial):
        tell(f"{request.stage}: an input changed since {partial} was begun, so it starts again")
    identity = request.identity()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(partial / REQUEST, {**identity, "sha256": hash_json(identity)})
    return partial


def goes_on(out: Path, request: StageRequest) -> bool | None:
    """Return whether an interrupted run is gone on with, None where there is none; only reads.

    Raises `Refused` where it had other settings and has work to lose.
    """
    partial = partial_folder(out)
    holds_work = _holds_work(partial)
    if not ((partial / REQUEST).is_file() or holds_work):
        return None
    before = read_request(partial)
    if holds_work:
        _refuse_other_settings(out, before, request, found=partial)
    return before == request.identity()


def read_request(partial: Path) -> dict[str, Any]:
    """Return what an interrupted run was to make."""
    path, remedy = partial / REQUEST, f"remove {partial} to start that stage again"
    request = own_file.read_json(path, REQUEST_SHAPE, remedy=remedy)
    known = request.pop("sha256", None)  # which earlier versions did not write
    if known not in (None, hash_json(request)):
        raise own_file.Damaged(own_file.CHANGED.format(path=path, remedy=remedy))
    return request


def _holds_work(partial: Path) -> bool:
    """Whether an interrupted run has left more than its request and what it said."""
    left_out = {*LIVE_FILES, REQUEST, PRECISION, "error.txt"}
    return any(p.is_file() and p.name not in left_out for p in partial.rglob("*"))


def complete(
    out: Path, request: StageRequest, metrics: Mapping[str, Any], *, seconds: float, extra: dict
) -> dict[str, Any]:
    """Write the manifest, give the folder its name, and drop what only a continuing run needs.

    In this order, so that a kill at any moment loses nothing: until the manifest is there the run
    can continue, and from then on `settle` finishes what is left to do.
    """
    partial = partial_folder(out)
    hashes = read_request(partial)["inputs"]  # as they were at the start
    left_out = {*LIVE_FILES, REQUEST, PRECISION}
    files = sorted(
        p
        for p in partial.rglob("*")
        if p.is_file()
        and p.name not in left_out
        and not p.name.startswith(".")  # what a kill left of a file that was being written
        and p.relative_to(partial).parts[0] != RESUME
    )
    manifest = {
        "schema": SCHEMA,
        "stage": request.stage,
        "settings": request.settings,
        "inputs": {
            name: {"path": str(path), "hash": hashes[name]} for name, path in request.inputs.items()
        },
        "outputs": {str(p.relative_to(partial)): hash_file(p) for p in files},
        "seed": request.seed,
        "versions": versions(),
        "metrics": dict(metrics),
        "run": {
            "wall_s": round(seconds, 3),
            "peak_mib": peak_mib(),
            "host": platform.node(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **extra,
        },
    }
    write_json(partial / MANIFEST, manifest)
    take_name(partial, out)
    drop_resume_state(out)
    return manifest


def drop_resume_state(out: Path) -> None:
    """Remove from a complete artifact what only a continuing run needs."""
    shutil.rmtree(out / RESUME, ignore_errors=True)
    for name in (REQUEST, PRECISION):
        (out / name).unlink(missing_ok=True)


def peak_mib() -> int:
    """Return the most memory this process has held, which macOS counts in bytes, Linux in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if platform.system() == "Darwin" else 1 << 10)


def versions() -> dict[str, str]:
    """Return the versions of what computes, read without importing it."""
    found = {"python": platform.python_version()}
    for name in (
        "fretsaw",
        "torch",
        "numpy",
        "scipy",
        "tokenizers",
        "safetensors",
        "pyarrow",
        "matplotlib",
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def require_disk(folder: Path, num_bytes: int) -> None:
    """Refuse to start what the disk cannot hold."""
    around = (folder, *folder.absolute().parents)
    free = shutil.disk_usage(next(p for p in around if p.exists())).free
    if free < num_bytes:
        shown = next((p for p in around if not p.name.startswith(".")), folder)
        raise ValueError(
            f"{shown}: {num_bytes / 2**20:,.1f} MiB needed, {free / 2**20:,.1f} MiB free; "
            "free some space or choose another --out"
        )
