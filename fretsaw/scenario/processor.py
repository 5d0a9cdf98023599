"""What the processor of this machine can do. Standard library only."""

import functools
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
NO_INT8 = (
    "int8: this processor has no AVX-512 VNNI, so such matrices are multiplied in float32 here, no "
    "faster than in full precision"
)


def reads_vnni(cpuinfo: str) -> bool:
    """Whether Linux's description of a processor names AVX-512 VNNI."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return flags is not None and "avx512_vnni" in flags[1].split()


@functools.cache
def multiplies_int8() -> bool:
    """Whether integers are multiplied faster than floats here, which needs AVX-512 VNNI.

    Elsewhere torch's integer product is a plain loop (pytorch/pytorch#136942), tens of times slower
    than float32. A system that does not tell what its processor has is taken to have none.
    """
    return CPUINFO.is_file() and reads_vnni(CPUINFO.read_text(errors="replace"))
