"""What the processor at hand can do, as Linux tells it."""

import platform
import sys

import pytest
import torch

from fretsaw.scenario.processor import multiplies_int8, reads_vnni

EPYC_9005 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx_vnni avx512_vnni\n"
EPYC_7003 = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx avx2 vaes\n"
ALDER_LAKE = "flags\t\t: fpu avx2 avx_vnni\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"


def test_the_instructions_are_read_from_the_flags() -> None:
    assert reads_vnni(EPYC_9005)
    assert not any(map(reads_vnni, (EPYC_7003, ALDER_LAKE, GRAVITON, "")))


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="told by Linux of x86 alone"
)
def test_it_is_what_torch_asks_before_it_multiplies_integers() -> None:
    assert multiplies_int8() == torch.cpu.get_capabilities()["avx512_vnni"]
