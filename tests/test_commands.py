"""The commands of the README, one after the other, as a user types them: synthetic people and real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import yaml
from PIL import Image

from v2f.cli import main
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.runs.run import Run
from v2f.tracking.state import read_state

REPOSITORY = Path(__file__).resolve().parent.parent
ACCELERATE = ["accelerate.commands.launch", "--config_file", str(REPOSITORY / "launch/accelerate/one-process.yaml")]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]  # accelerate starts one process on CPUs


def launch(launcher: list[str], *arguments: str) -> str:
    """`accelerate launch v2f/train.py ...`, or by torchrun; what it said."""
    command = [sys.executable, "-m", *launcher, str(REPOSITORY / "v2f" / "train.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def trained(tiny_shards, tmp_path_factory) -> tuple[str, str]:
    """A run of a few steps by the launcher, and the URI of the MLflow that tracked it."""
    folder = tmp_path_factory.mktemp("commands")
    uri = f"sqlite:///{folder}/mlflow.db"
    small = ["train.steps=6", "train.log_every=2", "train.validate_every=3", "train.validate_samples=6"]
    small += ["train.threads=1", "data.batch=8", "data.window=8", "system.seconds=0.5"]
    said = launch(
        ACCELERATE,
        "--config",
        str(REPOSITORY / "launch" / "recipes" / "quickstart.yaml"),
        f"out={folder}/run",
        f"data.path={tiny_shards}",
        f"tracking.uri={uri}",
        *small,
    )
    assert "stand-ins: generator, identity, perceptual, codes" in said
    assert "step 6: saved" in said
    return f"{folder}/run", uri


@pytest.mark.slow
def test_mlflow_holds_configuration_code_data_curves_and_pictures(trained):
    from mlflow import MlflowClient

    folder, uri = trained
    run = MlflowClient(uri).get_run(read_state(folder)["run_id"])
    assert run.data.params["system.losses.id"] == "1.0"
    assert run.data.params["data.batch"] == "8"
    assert run.data.tags["v2f.fingerprint"] == Run.open(folder).info["fingerprint"]
    assert run.data.tags["v2f.stand_ins"] == "generator, identity, perceptual, codes"
    assert len(run.data.tags["v2f.code"]) >= 8
    names = run.data.metrics.keys()
    assert {"loss/supervised/total", "rate/supervised/mapping", "grad_norm/supervised"} <= names
    assert {"system/speed/samples_per_second", "system/process_memory_gib", "valid/margin", "step"} <= names
    pictures = MlflowClient(uri).list_artifacts(run.info.run_id, "images")
    assert len(pictures) >= 2


@pytest.mark.slow
def test_eval_generate_and_report_take_a_folder_a_prefix_or_an_mlflow_id(trained, tiny_shards, tmp_path, monkeypatch):
    folder, uri = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    memory = fsspec.filesystem("memory")
    for file in Path(folder).rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/bucket/run/{file.relative_to(folder)}", file.read_bytes())
    voice = tmp_path / "voice.flac"
    raw = next(iter(read_split(open_dataset(tiny_shards).split("test"), Run.open(folder).system().transforms(), 1)))
    import soundfile

    soundfile.write(voice, raw["wav"][0].numpy(), 16000)
    pictures = []
    for number, run in enumerate([folder, "memory://bucket/run", read_state(folder)["run_id"]]):
        out = tmp_path / f"face-{number}.png"
        assert main(["generate", run, str(voice), "-o", str(out)]) == 0
        with Image.open(out) as picture:
            pictures.append(picture.tobytes())
            assert picture.size == (64, 64)
            assert "voice" in " ".join(picture.text.values())
    assert pictures[0] == pictures[1] == pictures[2]

    assert main(["eval", "memory://bucket/run"]) == 0
    found = json.loads(memory.cat_file("/bucket/run/eval.json"))
    assert found["splits"]["test"]["gallery_too_small"]
    assert found["splits"]["test"]["by"]["referee"]["lines"].keys() >= {"voice", "U1", "U2", "strongest", "generator"}
    assert main(["eval", folder]) == 0
    assert json.loads((Path(folder) / "eval.json").read_text())["splits"] == found["splits"]
    assert main(["report", folder]) == 0
    page = (Path(folder) / "report.html").read_text()
    assert page.count("data:image/png;base64") >= 12
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_two_processes_train_and_say_so(tiny_shards, tmp_path):
    said = launch(
        TORCHRUN,
        "--config",
        str(REPOSITORY / "launch" / "recipes" / "quickstart.yaml"),
        f"out={tmp_path}/run",
        f"data.path={tiny_shards}",
        "tracking.uri=null",
        "train.steps=2",
        "train.threads=1",
        "data.batch=16",
        "data.window=8",
        "system.seconds=0.5",
        "train.validate_samples=6",
    )
    assert "on 2 x cpu" in said
    assert [p.name for p in Path(tmp_path, "run/checkpoints/step-00000002").glob("*.safetensors")] != []
    assert len(list(Path(tmp_path, "run/checkpoints/step-00000002").glob("part-*.safetensors"))) == 2
    assert Run.open(f"{tmp_path}/run").system() is not None


@pytest.mark.slow
def test_real_pairs_go_through_the_same_commands(real_pairs, tmp_path, capsys):
    """Quality means nothing here: two people, and nets that never saw a real face. That it runs, and says so, does."""
    rows = [
        f"{voice},{voice.with_suffix('.png')},{voice.parent.name},{split}"
        for folder, split in (("train", "train"), ("test", "seen"))
        for voice in sorted((real_pairs / folder).glob("*/*.wav"))[:: 5 if folder == "train" else 4]
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(["audio,image,identity,split", *rows]))
    shards, run = f"{tmp_path}/shards", f"{tmp_path}/run"
    pairs = str(REPOSITORY / "shards" / "pairs.yaml")
    assert main(["shards", "pack", pairs, f"pairs.csv={tmp_path}/pairs.csv", f"out={shards}", "pairs.size=128"]) == 0
    assert f"{len(rows)} samples of 2 people" in capsys.readouterr().out
    assert main(["shards", "verify", shards]) == 0
    recipe = tmp_path / "recipe.yaml"
    values = yaml.safe_load((REPOSITORY / "launch" / "recipes" / "pairs.yaml").read_text())
    values["train"] |= {"steps": 50, "threads": 1}
    recipe.write_text(yaml.safe_dump(values | {"out": run, "data": values["data"] | {"path": shards}}))
    said = launch(ACCELERATE, "--config", str(recipe), "tracking.uri=null")
    assert "step 50: saved" in said
    voice = sorted((real_pairs / "test").glob("*/*.wav"))[1]
    assert main(["generate", run, str(voice), "-o", f"{tmp_path}/face.png"]) == 0
    with Image.open(tmp_path / "face.png") as picture:
        assert picture.size == (64, 64)
    capsys.readouterr()
    assert main(["eval", run]) == 0
    assert "the gallery is too small: 2 people" in " ".join(capsys.readouterr().out.split())
