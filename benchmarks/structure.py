"""How the package hangs together: rooms, floors, arrows between rooms, circles, long functions.

    python benchmarks/structure.py [--tree ../another/checkout]

A room is a file or folder at the top of a folder; an arrow is one room importing another, however
often; the floors are the longest way down.
"""

import argparse
import ast
from collections.abc import Iterable
from pathlib import Path
from statistics import median

Arrows = dict[str, set[str]]


def arrows_in(folder: Path, package: Path) -> Arrows:
    """Return by room what other rooms of the folder it imports."""
    inside = (package.name, *folder.relative_to(package).parts)
    found: Arrows = {}
    for path in sorted(folder.rglob("*.py")):
        room = path.relative_to(folder).parts[0].removesuffix(".py")
        if room == "__init__" and folder != package:
            continue
        imported = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    name = (*node.module.split("."), alias.name)
                    if name[: len(inside)] == inside and len(name) > len(inside):
                        imported.add(name[len(inside)])
    return {room: {o for o in others if o in found} - {room} for room, others in found.items()}


def floors(arrows: Arrows) -> int | None:
    """Return the length of the longest way down, None where there is a circle."""
    depth: dict[str, int] = {}

    def visit(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise RecursionError(" -> ".join((*above, room)))
        if room not in depth:
            depth[room] = 1 + max((visit(o, (*above, room)) for o in arrows[room]), default=0)
        return depth[room]

    try:
        return max(visit(room, ()) for room in arrows)
    except RecursionError:
        return None


def lengths(paths: Iterable[Path]) -> list[int]:
    """Return the lines of every function."""
    return [
        node.end_lineno - node.lineno + 1
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    package = parser.parse_args().tree / "fretsaw"
    for folder in (package, package / "puzzle"):
        arrows = arrows_in(folder, package)
        height = floors(arrows)
        print(
            f"{folder.relative_to(package.parent)}: {len(arrows)} rooms, "
            f"{height or 'no'} floors{'' if height else ' (a circle)'}, "
            f"{sum(map(len, arrows.values()))} arrows, "
            f"{len([path for path in folder.iterdir() if path.is_file()])} files at its top"
        )
    modules = {str(p.relative_to(package.parent)): p for p in package.rglob("*.py")}
    of_lines = sorted(lengths(modules.values()), reverse=True)
    files = sorted((len(p.read_text().splitlines()) for p in modules.values()), reverse=True)
    print(f"{len(modules)} files, median {median(files):.0f} lines, longest {files[:3]}")
    print(f"{len(of_lines)} functions, median {median(of_lines):.0f} lines, longest {of_lines[:6]}")


if __name__ == "__main__":
    main()
