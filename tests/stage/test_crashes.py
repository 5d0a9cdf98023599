"""A run that is killed at any operation on files ends as one that never was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = 137


@pytest.mark.parametrize(("size", "stride"), [(1, 41), (2, 83)])
def test_a_kill_at_any_operation_on_files_loses_nothing(
    tmp_path: Path, size: int, stride: int
) -> None:
    """And within any write. Real stages, at every one: `benchmarks/crash_sweep.py`."""
    program = Path(__file__).parents[1] / "crashes.py"
    command = [sys.executable, str(program), str(tmp_path), str(size), str(stride)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    for how in ("before", "within"):
        assert sum(line[0] == how and str(KILLED) in line for line in lines) >= 1
    for how, number, *codes in lines:
        assert codes[size:] == ["0"] * size, f"killed {how} {number}: {result.stderr}"
