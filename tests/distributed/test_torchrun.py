"""Our torchrun: a stop is passed on, and what was started has the time that it takes."""

import signal
import subprocess
import sys
from pathlib import Path

from fretsaw.distributed.torchrun import children

STOPS = """
import signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *told: heard.append(told))
print("ready", flush=True)
while not heard:
    time.sleep(0.05)
print("heard one", flush=True)
while len(heard) < 2:
    time.sleep(0.05)
time.sleep(2)
print("saved", flush=True)
sys.exit(75)
"""


def test_every_stop_is_passed_on_and_none_is_killed_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "stops.py").write_text(STOPS)
    own = [sys.executable, "-m", "fretsaw.distributed.torchrun", "--standalone"]
    process = subprocess.Popen(
        [*own, "--nproc-per-node", "2", "--shutdown-timeout", "1", str(tmp_path / "stops.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(signal.SIGTERM)
    assert [process.stdout.readline() for _ in range(2)] == ["heard one\n"] * 2
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=300)
    assert said == "saved\n" * 2
    assert process.returncode == 75, errors


def test_children_are_those_that_go_on() -> None:
    before = children()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert children() - before == {process.pid}
        process.kill()
        while process.pid in children():  # until it is a zombie
            pass
