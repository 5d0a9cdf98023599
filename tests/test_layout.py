"""The walls: imports go down floors only, and what must not know torch does not."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fretsaw"

FLOORS = [
    {"stage"},
    {"model", "chat", "scenario", "sandbox"},
    {"checkpoint", "distributed", "data", "training", "engine", "grade", "client"},
    {"rollout"},
    {"tasks"},
    {"corpus", "puzzle", "distill", "sft", "rl", "eval", "bench"},
    {"report", "export", "talk"},
    {"pipeline"},
    {"plan", "serve"},
    {"commands"},
    {"cli", "__init__", "__main__"},
]
PUZZLE_FLOORS = [
    {"settings"},
    {"space"},
    {"library", "search"},
    {"bld", "costs"},
    {"scores"},
    {"children", "fuse"},
]
# Rooms of one floor do not know one another, except where they are one storey's own steps.
MAY_KNOW_ITS_FLOOR = {1, 10}


def floor_of(room: str, floors: list[set[str]] = FLOORS) -> int:
    return next(i for i, rooms in enumerate(floors) if room in rooms)


def imports(path: Path) -> list[tuple[int, list[str]]]:
    """Return (line, dotted name without the package's) of every import of our own."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        ours = [name.split(".")[1:] for name in names if name.startswith("fretsaw.")]
        found += [(node.lineno, name) for name in ours]
    return found


def walk(folder: Path, floors: list[set[str]], depth: int, may_know: set[int]) -> list[str]:
    """Return the imports between a folder's rooms that go up, or sideways where they may not."""
    offending = []
    inside = folder.relative_to(PACKAGE).parts
    for path in sorted(folder.rglob("*.py")):
        room = path.relative_to(folder).parts[0].removesuffix(".py")
        if depth and room == "__init__":
            continue
        floor = floor_of(room, floors)
        for line, name in imports(path):
            if tuple(name[:depth]) != inside or name[depth] == room:
                continue
            there = floor_of(name[depth], floors)
            if there > floor or (there == floor and floor not in may_know):
                offending.append(f"{path.relative_to(ROOT)}:{line} {room} -> {name[depth]}")
    return offending


def test_imports_go_down_floors_only() -> None:
    assert walk(PACKAGE, FLOORS, 0, MAY_KNOW_ITS_FLOOR) == []


def test_imports_inside_puzzle_go_down_floors_only() -> None:
    assert walk(PACKAGE / "puzzle", PUZZLE_FLOORS, 1, set()) == []


def test_no_file_knows_itself_through_others() -> None:
    modules = {
        tuple(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    knows = {
        module: {tuple(name[:n]) for _, name in imports(path) for n in (len(name) - 1, len(name))}
        & modules.keys()
        for module, path in modules.items()
    }
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], trail: tuple[tuple[str, ...], ...]) -> None:
        assert module not in trail, " -> ".join("/".join(m) for m in (*trail, module))
        if module not in done:
            for other in sorted(knows[module] - {module}):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(modules):
        visit(module, ())


def test_every_folder_of_code_is_a_room_that_tools_see() -> None:
    """Names such as build and dist are passed over by git, packagers, ruff and pytest."""
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"
    folders = [p for top in (PACKAGE, ROOT / "tests") for p in top.rglob("*") if p.is_dir()]
    passed_over = {"build", "dist", "venv", "node_modules", "CVS"}
    assert [folder for folder in folders if folder.name in passed_over] == []


def test_few_files_stand_at_the_top() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 12


def test_init_files_of_rooms_are_empty() -> None:
    assert [p for p in PACKAGE.rglob("*/__init__.py") if p.read_text()] == []


BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
from fretsaw.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BLOCK_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_help_needs_no_torch() -> None:
    for command in (
        "",
        "compress",
        "run",
        "plan",
        "score",
        "distill",
        "search",
        "pretrain",
        "sft",
        "rl",
        "chat",
        "generate",
        "serve",
        "export",
    ):
        result = without_torch(*command.split(), "--help")
        assert result.returncode == 0, result.stderr
        assert "usage: fretsaw" in result.stdout


def test_plan_search_and_status_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "num_attention_heads": 8,'
        '"num_key_value_heads": 4, "num_hidden_layers": 6, "intermediate_size": 1024,'
        '"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}'
    )
    plan = without_torch("plan", str(tmp_path / "model"))
    assert plan.returncode == 0, plan.stderr
    assert "1.5x decode" in plan.stdout

    roofline = ("--engine", "roofline", "--scenario", "batch=4,in=64,out=64,device=h100x2")
    parent, out = str(tmp_path / "model"), str(tmp_path / "costs")
    cost = without_torch("cost", "--parent", parent, *roofline, "--out", out)
    assert cost.returncode == 0, cost.stderr
    assert '"gqa2"' in (tmp_path / "costs/costs.json").read_text()

    table = tmp_path / "table.json"
    table.write_text(
        '{"fixed": {"runtime_ms": 1}, "layers": [{"block":'
        '{"a": {"score": 0, "runtime_ms": 9}, "b": {"score": 1, "runtime_ms": 3}}}]}'
    )
    arguments = ("--library", str(table), "--limit", "runtime_ms=5", "--out", str(tmp_path / "s"))
    search = without_torch("search", *arguments)
    assert search.returncode == 0, search.stderr
    assert '"b"' in (tmp_path / "s" / "solutions.json").read_text()

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"stages": ["rank"]}')
    status = without_torch("status", str(tmp_path / "run"))
    assert status.returncode == 0, status.stderr
    assert "waiting" in status.stdout


def imported_by(code: str, *arguments: str) -> set[str]:
    """Return the modules that a process has imported once it ran some code."""
    code += "\nimport sys; print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


LOAD = "import sys, fretsaw; model = fretsaw.load(sys.argv[1]); assert model.decoder.device"
SAVE = "from pathlib import Path; from fretsaw.checkpoint import folder"
SAVE += "; folder.save(model.decoder, Path(sys.argv[2]))"


def test_to_open_and_write_a_checkpoint_needs_no_compiler(
    stories_folder: Path, tmp_path: Path
) -> None:
    """Nor what several processes split weights with: each is a second's import."""
    found = imported_by(f"{LOAD}\n{SAVE}", str(stories_folder), str(tmp_path / "again"))
    assert "torch" in found
    assert found.isdisjoint({"torch._dynamo", "torch._inductor", "torch.distributed.tensor"})
