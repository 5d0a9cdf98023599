"""Every artifact behind the report, and the command that makes each again."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fretsaw.stage import artifact, own_file


@dataclass(frozen=True)
class Made:
    """One artifact of the lineage."""

    name: str
    digest: str
    folder: Path
    manifest: dict[str, Any] | None  # None: it came from outside


def read_lineage(inputs: Mapping[str, Path]) -> list[Made]:
    """Return every artifact behind the inputs once, each after what it was made from."""
    found: dict[str, Made] = {}

    def visit(name: str, folder: Path, recorded: str) -> None:
        if recorded in found:
            return
        manifest = _manifest_of(folder, recorded)
        for inner_name, entry in manifest["inputs"].items() if manifest else ():
            visit(inner_name, Path(entry["path"]), entry["hash"])
        found[recorded] = Made(name, recorded, folder, manifest)

    for name, folder in inputs.items():
        if (folder / artifact.MANIFEST).is_file():
            visit(name, folder, artifact.artifact_hash(artifact.read_manifest(folder)))
    return list(found.values())


def _manifest_of(folder: Path, recorded: str) -> dict[str, Any] | None:
    if not (folder / artifact.MANIFEST).is_file():
        return None
    manifest = artifact.read_manifest(folder)
    return manifest if artifact.artifact_hash(manifest) == recorded else None  # made again since


def run_name(lineage: list[Made]) -> str | None:
    """Return the recipe the stages were made by, where their run says so."""
    for made in lineage:
        for folder in list(made.folder.parents)[:2] if made.manifest else ():
            if (folder / "run.json").is_file():
                name = own_file.read_json(folder / "run.json", {"name": str})["name"]
                return " ".join(word.rpartition("/")[2] for word in name.split())
    return None


def stage_rows(lineage: list[Made]) -> list[dict[str, Any]]:
    """Return what the page says of each stage, with the command that makes it again."""
    folders = [made.folder for made in lineage if made.manifest]
    # Recorded paths are shown from the folder the stages share: where that lies is nobody's affair.
    root = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0].parent
    return [
        {
            "name": _shown(made.folder, root),
            "hash": made.digest,
            "manifest": made.manifest,
            "settings": flat(made.manifest["settings"]),
            "command": command(made, root),
        }
        for made in lineage
        if made.manifest
    ]


def command(made: Made, root: Path) -> str:
    """Return the command line that makes an artifact again, every setting said."""
    assert made.manifest is not None, "what came from outside has no command"
    manifest, words = made.manifest, ["fretsaw", made.manifest["stage"]]
    data = [_shown(Path(e["path"]), root) for n, e in manifest["inputs"].items() if n[:4] == "data"]
    settings = flat(manifest["settings"])
    for name, entry in manifest["inputs"].items():
        if name == "problems":
            settings["task"] = _shown(Path(entry["path"]), root)
        elif name[:4] != "data":
            words += [f"--{name.replace('_', '-')}", _shown(Path(entry["path"]), root)]
    words += ["--data", *data] if data else []
    for key, value in settings.items():
        words += [f"--{key.rpartition('.')[2].replace('_', '-')}", str(value)]
    words += ["--seed", str(manifest["seed"])]
    for key in ("device", "dtype"):
        words += [f"--{key}", manifest["run"][key]] if key in manifest["run"] else []
    return shlex.join([*words, "--out", _shown(made.folder, root)])


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        nested = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        values |= nested if nested is not None else {f"{prefix}{key}": value}
    return values


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
