"""The walls: imports go down floors only, and what must not know torch does not."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fretsaw"

FLOORS = [
    {"artifact", "progress", "hardware", "stage", "peers", "workers"},
    {"settings", "model", "tokenizer", "scenario", "sampling", "chat", "chat_template"},
    {"checkpoint", "distributed", "data", "training", "engine", "verify"},
    {"rollout"},
    {"tasks"},
    {"corpus", "puzzle", "distill", "sft", "rl", "eval", "bench"},
    {"report"},
    {
        "kinds",
        "recipe",
        "published",
        "lineage",
        "agreement",
        "inspect",
        "plan",
        "loaded",
        "compress",
        "export",
    },
    {"launch", "pipeline", "terminal", "generate", "serve"},
    {"status", "commands"},
    {"cli", "__init__", "__main__"},
]
# Rooms of one floor do not know one another, except where they are one storey's own steps.
MAY_KNOW_ITS_FLOOR = {0, 1, 7, 8, 9, 10}


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, room) of every import of our own."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            is_ours = node.module == "fretsaw"
            names = [f"fretsaw.{a.name}" for a in node.names] if is_ours else [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms = [name.split(".")[1] for name in names if name.startswith("fretsaw.")]
        found += [(node.lineno, room) for room in rooms]
    return found


def test_imports_go_down_floors_only() -> None:
    offending = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        room = parts[0].removesuffix(".py")
        floor = floor_of(room)
        for line, other in imports(path):
            if other == room:
                continue
            there = floor_of(other)
            if there > floor or (there == floor and floor not in MAY_KNOW_ITS_FLOOR):
                offending.append(f"{path.relative_to(ROOT)}:{line} {room} -> {other}")
    assert offending == []


def test_init_files_of_rooms_are_empty() -> None:
    assert [p for p in PACKAGE.glob("*/__init__.py") if p.read_text()] == []


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
