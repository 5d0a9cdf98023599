"""Compiled and recomputed blocks give the same losses and gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch

from fretsaw.training.blocks import prepare_blocks


def test_recomputed_blocks_change_no_bit(tiny: Path) -> None:
    plain = together.loss_and_gradients(tiny, compile=False, recompute=False)
    recomputed = together.loss_and_gradients(tiny, compile=False, recompute=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_recomputing_keeps_less_for_the_backward_pass(tiny: Path) -> None:
    def kept(recompute: bool) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        decoder = together.child(tiny)
        prepare_blocks(decoder, compile=False, recompute=recompute)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            decoder.hidden_states(torch.arange(2 * 32).view(2, 32))
        return sum(sizes)

    assert kept(True) < 0.5 * kept(False)


@pytest.mark.slow
def test_compiled_blocks_change_rounding_only(tiny: Path, tmp_path: Path) -> None:
    """In a process of its own, where shapes are not checked: checks are no code to compile."""
    command = [sys.executable, together.__file__, "compiled", str(tiny), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    plain, compiled = torch.load(tmp_path / "compiled.pt", weights_only=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
