"""What every test shares: shapes checked at run time, no network, one thread, the test data."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from jaxtyping import install_import_hook

# The "tower" lets an int pass where a float is asked for, as PEP 484 does.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("fretsaw", CHECKER)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="fretsaw-remote-code-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # the networks are tiny: a second thread only waits

MODELS = ("stories260K", "babyllama-char105")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of test data: FRETSAW_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FRETSAW_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set FRETSAW_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session", params=MODELS)
def model_folder(request: pytest.FixtureRequest, data_folder: Path) -> Path:
    """Each of the shared checkpoints in turn."""
    folder = data_folder / "models" / request.param
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="session")
def stories_folder(data_folder: Path) -> Path:
    """The smallest shared checkpoint, stories260K."""
    folder = data_folder / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder
