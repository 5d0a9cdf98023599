"""The toggled model, and two servers of it that the tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Local, Remote, local, remote, write_toggled


@pytest.fixture(scope="session")
def toggled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that answers the lessons by heart."""
    folder = tmp_path_factory.mktemp("served") / "toggled"
    folder.mkdir()
    write_toggled(folder)
    return folder


@pytest.fixture(scope="session")
def server(toggled: Path) -> Iterator[Local]:
    """The toggled model served in this process."""
    with local(toggled) as running:
        yield running


@pytest.fixture(scope="session")
def live(toggled: Path) -> Iterator[Remote]:
    """The toggled model behind a real `fretsaw serve`."""
    with remote(toggled) as running:
        yield running
