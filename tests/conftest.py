"""What several tests share: one tiny data set, packed once, and a run's configuration on it."""

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from swift import Swift

# The same examples every time, and no limit on a slow machine's seconds.
hypothesis.settings.register_profile("v2f", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("v2f")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores are shared by ranks, workers and the test itself
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> str:
    """24 people in train with two clips of 0.5 s, 6 to validate, 6 unseen, 6 seen: the data of every training test. Its
    samples have codes, too."""
    from coded import with_codes

    from v2f.data.manifest import open_dataset
    from v2f.prepare.pack import load_recipe, pack

    folder = tmp_path_factory.mktemp("tiny")
    out = str(folder / "packed")
    people = ["train.people=24", "valid.people=6", "test.people=6", "seen.people=6", "seconds=0.5"]
    people += ["labels=[glasses,hair,age]"]
    pack(
        load_recipe(str(REPOSITORY / "shards" / "quickstart.yaml"), [f"out={out}", *(f"synthetic.{p}" for p in people)])
    )
    return with_codes(open_dataset(out), str(folder / "shards")).root


@pytest.fixture
def run_values(tiny_shards, tmp_path) -> Callable[..., dict[str, Any]]:
    """Values of a RunConfig on the tiny shards, for one system of the table."""
    from systems.small import SMALL, STREAMS

    def values(system: str = "voice_styled_face", **train: Any) -> dict[str, Any]:
        streams = {"streams": {name: {} for name in STREAMS[system]}} if system in STREAMS else {}
        return {
            "name": "tiny",
            "out": str(tmp_path / "run"),
            "seed": 3,
            "system": copy.deepcopy(SMALL[system]),  # a test may change it
            "data": {"path": tiny_shards, "batch": 8, "workers": 0, "window": 8, "partitions": 4} | streams,
            "train": {"steps": 4, "threads": 1, "log_every": 1, "validate_samples": 6} | train,
            "tracking": {"uri": None},
        }

    return values


@pytest.fixture(scope="session")
def real_pairs() -> Path:
    """Real pairs, ``{train,test}/PERSON/N.{wav,png}``: not ours to publish, so they lie outside the repository."""
    folder = Path(os.environ.get("V2F_REAL_PAIRS") or REPOSITORY.parent / "shared" / "samples" / "real_pairs")
    if not folder.is_dir():
        pytest.skip(f"no real pairs at {folder}; set V2F_REAL_PAIRS")
    return folder


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each foreign layout, under the authors' names, holding random numbers."""
    import torch

    from bench.random_weights import FILES

    folder = tmp_path_factory.mktemp("weights")
    for name, make in FILES.items():
        torch.save(make(), folder / name)
    return folder


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Swift]":
    """A real object store on loopback."""
    from swift import NoSwiftError, serving

    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(serving(tmp_path_factory.mktemp("swift")))
        except NoSwiftError as error:
            pytest.skip(str(error))
        yield running


@pytest.fixture
def s3_root(swift: "Swift", request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in it that is this test's own; the environment has endpoint and keys."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in swift.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{swift.bucket}/{request.node.name}"
