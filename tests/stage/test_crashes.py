"""A run that is killed at any operation on files ends as one that never was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = 137


@pytest.mark.parametrize(("size", "stride"), [(1, 23), (2, 59)])
def test_a_kill_at_any_operation_on_files_loses_nothing(
    tmp_path: Path, size: int, stride: int
) -> None:
    """A stride of 1 kills at every one; it takes minutes: `python tests/crashes.py OUT 1 1`."""
    program = Path(__file__).parents[1] / "crashes.py"
    command = [sys.executable, str(program), str(tmp_path), str(size), str(stride)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    lines = [list(map(int, line.split())) for line in result.stdout.splitlines()]
    assert sum(KILLED in line for line in lines) >= 3
    for number, *codes in lines:
        assert codes[size:] == [0] * size, f"killed at {number}: {result.stderr}"
