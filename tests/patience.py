"""How long a test waits before it calls something hung: the one place that knows.

A limit tells a hang from work, and nothing about speed, so it is generous: ten times what a quiet
machine needs. On a busier or slower machine it is as many times longer as a fixed piece of work is.
"""

import functools
import time

GENEROUS = 10.0
REFERENCE_S = 0.08  # what the probe takes on the quiet machine that the limits were written on


@functools.cache
def patience() -> float:
    """Return what limits are multiplied by, from one probe of the machine as it is now."""
    started = time.perf_counter()
    sum(number * number % 7 for number in range(1_000_000))
    return GENEROUS * max(1.0, (time.perf_counter() - started) / REFERENCE_S)


def patient(seconds: float) -> float:
    """Return the limit for what takes so long on a quiet machine at most."""
    return seconds * patience()
