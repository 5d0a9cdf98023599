"""`python -m fretsaw` is `fretsaw`."""

from fretsaw.cli import run

run()
