"""A recipe is a list of stages; a stage is a name, settings, and inputs by the names of others.

Standard library only.
"""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fretsaw.pipeline.kinds import STAGES

Inputs = dict[str, str | Path | list[str | Path]]  # by name: a stage's name, or a path


@dataclass(frozen=True)
class Stage:
    """One step of a recipe. `name` is its folder; inputs name earlier stages, or are paths.

    `launcher` is the command that runs Python on it, such as "torchrun --nproc-per-node 8".
    """

    name: str
    settings: Any
    inputs: Inputs = field(default_factory=dict)
    launcher: str = "python"

    @property
    def kind(self) -> str:
        """The command this stage runs, told by the type of its settings."""
        for name, kind in STAGES.items():
            if kind.settings is type(self.settings):
                return name
        raise ValueError(f"stage {self.name!r}: {type(self.settings).__name__} belongs to no stage")


def inputs_of(stage: Stage) -> Iterator[tuple[str, str]]:
    """Yield (input, stage or path), every one of a list."""
    for name, value in stage.inputs.items():
        for one in value if isinstance(value, list) else [value]:
            yield name, str(one)


def slug(text: str) -> str:
    """Return a folder name for a target: "1.5x decode, 24GB" -> "1.5x-decode-24GB"."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("%", "pct")).strip("-")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes of this package by name."""
    here = Path(__file__).parents[1]
    folders = [folder for folder in (here / "recipes", here.parent / "recipes") if folder.is_dir()]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a shipped recipe (by name) or of the user's own (by path)."""
    path = Path(name_or_path)
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"{path}: no such recipe file")
        return path
    shipped = shipped_recipes()
    if name_or_path not in shipped:
        raise ValueError(
            f"{name_or_path!r}: no such recipe; shipped: {', '.join(shipped)}; or give a .py file"
        )
    return shipped[name_or_path]


def is_recipe(name_or_path: str) -> bool:
    """Say whether this is a recipe, shipped or a .py file, and no checkpoint."""
    return name_or_path.endswith(".py") or name_or_path in shipped_recipes()


def needed_arguments(path: Path) -> list[str]:
    """Return the arguments without which a recipe can't be made."""
    function = getattr(_module(path), "recipe", None)
    accepted = inspect.signature(function).parameters.values() if function else ()
    return [one.name for one in accepted if one.default is one.empty]


def published_of(name_or_path: str) -> Any:
    """Return what a recipe says of a published model, None where it is no such recipe's name."""
    if not is_recipe(name_or_path):
        return None
    return getattr(_module(find_recipe(name_or_path)), "PUBLISHED", None)


def load_recipe(path: Path, arguments: dict[str, Any]) -> list[Stage]:
    """Run the file's `recipe()`, with the arguments it takes (such as fast=True)."""
    module = _module(path)
    if not hasattr(module, "recipe"):
        raise ValueError(f"{path}: defines no recipe(); it returns the list of stages")
    accepted = inspect.signature(module.recipe).parameters
    unknown = [name for name in arguments if name not in accepted]
    needed = [
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if unknown or needed:
        wrong = f"takes no {unknown[0]!r}" if unknown else f"needs {needed[0]!r}"
        raise ValueError(
            f"{path}: its recipe() {wrong}; give --arg NAME=VALUE for {', '.join(accepted)}"
        )
    return module.recipe(**arguments)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
