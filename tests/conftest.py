"""What every test shares: shapes checked at run time, no network, one thread, the test data."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from beartype import BeartypeConf
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

# jaxtyping's check of a call takes ten times beartype's, so it is for the files that need it: those
# that name shapes, and those whose types are imported for the type checker alone.
# The "tower" lets an int pass where a float is asked for, as PEP 484 does.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
PACKAGE = Path(__file__).parents[1] / "fretsaw"
WITH_SHAPES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("[!_]*.py")
    if any(word in path.read_text() for word in ("jaxtyping", "TYPE_CHECKING"))
]
with install_import_hook("fretsaw", CHECKER):
    import fretsaw  # noqa: F401
beartype_package(
    "fretsaw",
    conf=BeartypeConf(is_pep484_tower=True, claw_is_pep526=False, violation_type=TypeError),
)
install_import_hook(WITH_SHAPES, CHECKER)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start, too
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="fretsaw-remote-code-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402
from patience import patient  # noqa: E402
from support import stage_run  # noqa: E402

from fretsaw.corpus.build import build  # noqa: E402
from fretsaw.corpus.settings import CorpusSettings  # noqa: E402
from fretsaw.distill.settings import PretrainSettings, TrainSettings  # noqa: E402
from fretsaw.distill.train import pretrain  # noqa: E402
from fretsaw.puzzle.library.ranking import rank  # noqa: E402
from fretsaw.puzzle.settings import RankSettings  # noqa: E402
from fretsaw.training.settings import UpdateSettings  # noqa: E402

torch.set_num_threads(1)  # the networks are tiny: a second thread only waits

HANGS_AFTER_S = 120  # on a quiet machine; no test takes a fifth of it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test without a limit of its own the one after which it hangs."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(patient(HANGS_AFTER_S)))


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `corpus`, a 4-layer `parent` trained on it a little, and its `ranking`."""
    root = tmp_path_factory.mktemp("tiny")
    corpus = CorpusSettings(
        source="world", max_tokens=20_000, heldout_tokens=4_096, vocab_size=300, seq_len=64
    )
    build(corpus, {}, stage_run(root / "corpus"))
    train = TrainSettings(
        tokens=40_960,
        batch_tokens=512,
        micro_batch_tokens=512,
        seq_len=64,
        heldout_tokens=1024,
        update=UpdateSettings(optimizer="muon", learning_rate=5e-3),
    )
    shape = PretrainSettings(
        num_hidden_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        train=train,
    )
    pretrain(shape, {"corpus": root / "corpus"}, stage_run(root / "parent"))
    inputs = {"parent": root / "parent", "corpus": root / "corpus"}
    rank(RankSettings(tokens=2048, seq_len=64), inputs, stage_run(root / "ranking"))
    return root
