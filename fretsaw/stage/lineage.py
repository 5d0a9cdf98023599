"""Where an artifact came from: its manifest, its inputs' manifests, and so on."""

from pathlib import Path

from fretsaw.stage import artifact


def render_lineage(path: Path) -> str:
    """Return the tree of what an artifact was made of, each with the hash it had then."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return "\n".join(_lines(path.absolute(), artifact.hash_path(path), "", set()))


def _lines(path: Path, recorded: str, indent: str, seen: set[Path]) -> list[str]:
    exists = path.exists()
    now = artifact.hash_path(path) if exists else None
    note = "" if now == recorded else "  (changed since)" if exists else "  (gone)"
    if not (path / artifact.MANIFEST).is_file():
        return [f"{indent}{path}  {recorded[:12]}{note}"]
    manifest = artifact.read_manifest(path)
    when = manifest["run"]["finished"]
    lines = [f"{indent}{path}  {manifest['stage']}  {recorded[:12]}  {when}{note}"]
    if path in seen:
        return [f"{lines[0]}  (see above)"] if manifest["inputs"] else lines
    seen.add(path)
    for name, entry in manifest["inputs"].items():
        inner = _lines(Path(entry["path"]), entry["hash"], indent + "    ", seen)
        inner[0] = f"{indent}    {name}: {inner[0].lstrip()}"
        lines += inner
    return lines
