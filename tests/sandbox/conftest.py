"""A sandbox of each backend that works here."""

from collections.abc import Iterator

import pytest

from fretsaw.sandbox.backend import Backend, missing
from fretsaw.sandbox.limits import Limits
from fretsaw.sandbox.sandbox import Sandbox

LIMITS = Limits(cpu_s=1, wall_s=30, memory_mib=256, output_mib=1, disk_mib=4, num_threads=24)


def sandbox_of(backend: Backend, limits: Limits = LIMITS) -> Sandbox:
    if (reason := missing(backend)) is not None:
        pytest.skip(f"{backend}: {reason}")
    return Sandbox(limits, backend)


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with sandbox_of(request.param) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def bubblewrap() -> Iterator[Sandbox]:
    with sandbox_of("bubblewrap") as sandbox:
        yield sandbox
