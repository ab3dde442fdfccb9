"""``v2f checkpoint show|verify|export``: what is kept, what is damaged, and an export to generate from."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from PIL import Image
from systems.small import SMALL

from v2f.cli import main
from v2f.config import build, dump_yaml
from v2f.data.manifest import open_dataset
from v2f.errors import V2FError
from v2f.nn.mapping import StyleMapping
from v2f.nn.waveform import WaveformEncoder
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig, load_config
from v2f.runs.datacard import card
from v2f.runs.export import export, portable
from v2f.runs.inspect import group_of, misfits
from v2f.runs.run import Run, build_system
from v2f.runs.saver import Saver, deal
from v2f.storage import store
from v2f.system import System, trained
from v2f.systems.voice_styled_face import VoiceStyledFace

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "hunter2-s3cr3t"
MARGINS = {10: 0.1, 20: 0.3, 30: 0.2, 40: float("nan")}
Tensors = dict[str, torch.Tensor]


def configuration(shards: str, out: str) -> RunConfig:
    """A run of a site with places and addresses of its own."""
    values = {
        "name": "tiny",
        "out": out,
        "seed": 3,
        "system": SMALL["voice_styled_face"] | {"frozen": {"path": "/mnt/lab/weights"}},
        "data": {"path": shards, "batch": 8, "cache": {"path": "/scratch/cache", "gb": 1.0}},
        "train": {"steps": 40, "keep_every": 20, "best": {"metric": "margin", "mode": "max"}},
        "tracking": {"uri": f"https://mlflow.lab.example/{SECRET}"},
    }
    return build(RunConfig, values, "test")


def saved(system: System, step: int) -> Tensors:
    """What a checkpoint of that system holds after a step: averages and moments are told apart from the weights."""
    weights = {name: tensor.detach().clone() for name, tensor in checkpoint.module_tensors(system).items()}
    whole = dict(weights)
    for name, tensor in weights.items():
        whole["ema/" + name.removeprefix("model/")] = tensor + 0.01 if tensor.is_floating_point() else tensor.clone()
    for module, net in trained(system).items():
        for name, parameter in net.named_parameters():
            whole[f"optim/supervised/{module}.{name}/exp_avg"] = torch.full_like(parameter, 0.1).detach()
            whole[f"optim/supervised/{module}.{name}/exp_avg_sq"] = torch.full_like(parameter, 0.2).detach()
            whole[f"optim/supervised/{module}.{name}/step"] = torch.tensor(float(step))
    return whole


def write(root: str, config: RunConfig, system: System, change: Callable[[int, Tensors], None] | None = None) -> None:
    """A run's folder or prefix with checkpoints of steps 10 to 40, of two ranks each, nothing removed."""
    store.write_bytes(store.join(root, "config.yaml"), dump_yaml(config).encode())
    info = {"name": "tiny", "system": "voice_styled_face", "fingerprint": "f" * 64, "stand_ins": "generator, identity"}
    info |= {"data": config.data.path, "code": "c0de", "device": "cpu", "versions": {"torch": "2.11.0"}}
    store.write_bytes(store.join(root, "run.json"), json.dumps(info).encode())
    for step, margin in MARGINS.items():
        tensors = saved(system, step)
        if change is not None:
            change(step, tensors)
        shares = deal({name: t.nbytes for name, t in tensors.items()}, 2)
        state = {"step": step, "slot": 8 * step, "fingerprint": "f" * 64, "quarantine": [4, 5], "run_id": "ab" * 16}
        state |= {"metrics": {"margin": margin}, "versions": {"torch": "2.11.0"}, "weights": {}}
        state |= {"config": config.model_dump(mode="json")}
        savers = [
            Saver(store.join(root, "checkpoints"), rank=rank, world_size=2, attempt="t", keep=9) for rank in range(2)
        ]
        for rank, saver in enumerate(savers):
            saver.start(step, shares, {name: tensors[name] for name in shares[rank]}, state)
        for saver in savers:
            saver.wait()
            assert saver.take_failures() == []


@pytest.fixture(scope="module")
def system(tiny_shards: str) -> System:
    return build_system(configuration(tiny_shards, "/nowhere"))


@pytest.fixture(scope="module")
def run_folder(tiny_shards: str, system: System, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("site") / "run")
    write(folder, configuration(tiny_shards, folder), system)
    return folder


# -------------------------------------------------------------------------------------------------------- show


def rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("│"):
            yield [cell.strip() for cell in line.strip("│").split("│")]


def test_show_lists_steps_sizes_the_meter_and_why_each_is_kept(run_folder: str, capsys: Any) -> None:
    assert main(["checkpoint", "show", run_folder]) == 0
    table = {row[0]: row for row in rows(capsys.readouterr().out)}
    assert list(table) == ["10", "20", "30", "40"]
    assert [table[step][4] for step in table] == ["0.1", "0.3", "0.2", "nan"]
    assert [table[step][2] for step in table] == ["2"] * 4
    assert table["10"][-1] == "removed at the next save"
    assert table["20"][-1] == "every 20, the best margin"
    assert table["30"][-1] == "of the newest 2"
    assert table["40"][-1] == "the newest, every 20"
    assert table["40"][3].endswith(" B")


def test_show_of_one_counts_what_is_in_it_and_tells_its_state(
    run_folder: str, system: System, tiny_shards: str, capsys: Any
) -> None:
    folder = f"{run_folder}/checkpoints/step-00000020"
    assert main(["checkpoint", "show", folder]) == 0
    said = capsys.readouterr().out
    table = {row[0]: row[1:] for row in rows(said)}
    encoder = trained(system)["encoder"]
    parameters = sum(p.numel() for p in encoder.parameters())
    assert table["optim/supervised/encoder exp_avg"][1] == f"{parameters:,}"
    assert table["model/encoder"] == table["ema/encoder"]
    assert table["model/encoder"][0] == str(len(encoder.state_dict()))
    total = sum(t.nbytes for t in saved(system, 20).values())
    assert table["all"][2] == f"{total:,} B"
    assert "step: 20\n" in said
    assert "slot: 160 (epoch 3.33)" in said  # 24 people with two clips each
    assert f"data fingerprint: {'f' * 64}" in said
    assert f"MLflow run: {'ab' * 16}" in said
    assert "in quarantine: 2 samples" in said
    assert "versions: torch 2.11.0" in said
    assert "metric margin: 0.3" in said
    assert "configuration: SHA-256 " in said


def test_names_are_grouped_by_what_they_are() -> None:
    assert group_of("model/encoder.stem.weight") == "model/encoder"
    assert group_of("ema/mapping.0.bias") == "ema/mapping"
    assert group_of("optim/generator/net.a.b.weight/exp_avg_sq") == "optim/generator/net exp_avg_sq"


def test_without_a_checkpoint_every_verb_says_so_in_one_line(tiny_shards: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.yaml").write_text(dump_yaml(configuration(tiny_shards, str(tmp_path))))
    for verb in (["show"], ["verify"], ["export", "-o", str(tmp_path / "new")]):
        assert main(["checkpoint", *verb, str(tmp_path)]) == 1
        assert "no committed checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------ verify


def test_verify_passes_what_is_whole(run_folder: str, capsys: Any) -> None:
    assert main(["checkpoint", "verify", run_folder]) == 0
    assert "4 committed checkpoints are as they were written, whole and finite" in capsys.readouterr().out
    assert main(["checkpoint", "verify", f"{run_folder}/checkpoints/step-00000010"]) == 0
    assert "1 committed checkpoints" in capsys.readouterr().out


def test_verify_takes_a_copy_under_another_name_and_the_folder_that_one_is_in(
    run_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = f"{run_folder}/checkpoints/step-00000010"
    for name in ("mybest", "best-20", "step-00000020"):
        shutil.copytree(whole, tmp_path / name)
    for name in ("mybest", "best-20"):
        assert main(["checkpoint", "verify", str(tmp_path / name)]) == 0
        assert "1 committed checkpoints" in capsys.readouterr().out
    monkeypatch.chdir(whole)
    assert main(["checkpoint", "verify", "."]) == 0
    assert "1 committed checkpoints" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "step-00000020")
    for name in (".", str(tmp_path / "step-00000020")):
        assert main(["checkpoint", "verify", name]) == 1
        assert f"{name}: its record belongs to step 10" in capsys.readouterr().out


def test_every_reader_refuses_a_record_with_a_flipped_bit(run_folder: str, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    run, voice = str(tmp_path / "run"), tmp_path / "voice.wav"
    soundfile.write(voice, np.zeros(16000, np.float32), 16000)
    record = tmp_path / "run" / "checkpoints" / "step-00000040" / "checkpoint.json"
    content = record.read_bytes()
    record.write_bytes(content.replace(b'"step": 40', b'"step": 44', 1))
    one = str(record.parent)
    for command in (
        *(["checkpoint", verb, where] for verb in ("show", "verify") for where in (run, one)),
        *(
            ["checkpoint", "export", run, "-o", str(tmp_path / "out"), *which]
            for which in ([], ["--checkpoint", "best"])
        ),
        ["generate", run, str(voice), "-o", str(tmp_path / "face.png")],
        ["eval", run],
    ):
        assert main(command) == 1, command
        said = capsys.readouterr()
        (line,) = [line for line in (said.out + said.err).splitlines() if "damaged" in line]
        assert line.endswith(
            f"{record}: damaged (its checksum does not match); remove it to resume from step-00000030 "
            "(older still: step-00000020, step-00000010)"
        ), command
    assert not (tmp_path / "out").exists()


def test_verify_names_each_problem_in_a_line(tiny_shards: str, system: System, tmp_path: Path, capsys: Any) -> None:
    name = next(name for name, t in saved(system, 1).items() if name.startswith("model/mapping") and t.ndim > 1)
    own = name.removeprefix("model/")

    def change(step: int, tensors: Tensors) -> None:
        if step == 10:
            tensors[name].view(-1)[:3] = torch.tensor([float("nan"), float("inf"), 1.0])
        if step == 20:
            del tensors[f"optim/supervised/{own}/exp_avg"], tensors[f"ema/{own}"]

    write(str(tmp_path), configuration(tiny_shards, str(tmp_path)), system, change)
    part = next((tmp_path / "checkpoints" / "step-00000030").glob("part-00001*.safetensors"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 16
    part.write_bytes(content)
    next((tmp_path / "checkpoints" / "step-00000040").glob("part-00000*.safetensors")).unlink()
    assert main(["checkpoint", "verify", str(tmp_path)]) == 1
    *problems, summary = capsys.readouterr().out.splitlines()
    assert len(problems) == 5
    assert f"{name} holds 2 numbers that are not finite" in problems[0]
    assert {problem.split(": ", 1)[1] for problem in problems[1:3]} == {
        f"ema/{own} is missing",
        f"optim/supervised/{own}/exp_avg is missing",
    }
    assert "its SHA-256 does not match" in problems[3]
    assert "step-00000030/part-00001" in problems[3]
    assert "it is missing" in problems[4]
    assert "5 problems in 4 committed checkpoints" in summary


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model/a.w": None, "model/a.b": None}, "it holds no weights (model/...)"),
        ({"ema/a.w": None}, "ema/a.w is missing"),
        ({"ema/c.w": (2,)}, "ema/c.w is the average of nothing: there is no model/c.w"),
        ({"ema/a.w": (3,)}, "ema/a.w has shape [3], model/a.w [2]"),
        ({"optim/p/a.b/exp_avg": (3,)}, "optim/p/a.b/exp_avg has shape [3], which no weight here has"),
        ({"optim/p/a.b/step": None}, "optim/p/a.b/step is missing"),
        ({"rng": (8,)}, "rng does not belong in a checkpoint"),
    ],
)
def test_names_and_shapes_have_to_fit_together(change: dict[str, tuple[int, ...] | None], told: str) -> None:
    whole: dict[str, tuple[int, ...] | None] = {}
    for own, shape in {"a.w": (2,), "a.b": (1,)}.items():
        whole |= {
            f"model/{own}": shape,
            f"ema/{own}": shape,
            f"optim/p/{own}/exp_avg": shape,
            f"optim/p/{own}/step": (),
        }
    assert list(misfits({k: v for k, v in whole.items() if v is not None})) == []
    assert told in list(misfits({k: v for k, v in (whole | change).items() if v is not None}))


# ------------------------------------------------------------------------------------------------------ export


def test_an_export_is_a_run_to_generate_from(run_folder: str, tmp_path: Path, capsys: Any) -> None:
    out, voice = tmp_path / "export", tmp_path / "voice.wav"
    assert main(["checkpoint", "export", run_folder, "-o", str(out)]) == 0
    assert "the moving averages of the weights of step 40" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["DATA.md", "README.md", "config.yaml", "model.safetensors"]
    rng = np.random.default_rng(0)
    soundfile.write(voice, 0.1 * rng.standard_normal(8000), 16_000)
    for run, face in ((run_folder, "a.png"), (str(out), "b.png")):
        assert main(["generate", run, str(voice), "-o", str(tmp_path / face)]) == 0
    with Image.open(tmp_path / "a.png") as one, Image.open(tmp_path / "b.png") as two:
        assert one.tobytes() == two.tobytes()
        assert two.info["Step"] == "40"
        assert two.info["Run"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "step", "kind"),
    [
        ([], 40, "ema/"),
        (["--raw"], 40, "model/"),
        (["--checkpoint", "best"], 20, "ema/"),
        (["--checkpoint", "10"], 10, "ema/"),
    ],
)
def test_the_chosen_checkpoint_is_exported(
    run_folder: str, tmp_path: Path, arguments: list[str], step: int, kind: str
) -> None:
    out = str(tmp_path / "export")
    assert main(["checkpoint", "export", run_folder, "-o", out, *arguments]) == 0
    whole = checkpoint.load(f"{run_folder}/checkpoints/step-{step:08d}")[0]
    found = safetensors.torch.load_file(f"{out}/model.safetensors")
    wanted = {name.removeprefix(kind): t for name, t in whole.items() if name.startswith(kind)}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    run = Run.open(out)
    assert (run.exported, run.step, run.info["averaged"]) == (True, step, kind == "ema/")
    own = checkpoint.module_tensors(run.system())
    assert all(torch.equal(own[f"model/{name}"], wanted[name]) for name in wanted)


def test_an_export_holds_nothing_of_the_site_that_made_it(run_folder: str, tiny_shards: str, tmp_path: Path) -> None:
    out = tmp_path / "export"
    export(run_folder, str(out))
    everything = b"".join(path.read_bytes() for path in out.iterdir())
    for hidden in (SECRET, "mlflow.lab", "/mnt/", "/scratch", tiny_shards, run_folder, str(tmp_path), "ab" * 16, "://"):
        assert hidden.encode() not in everything, hidden
    config = Run.open(str(out)).config
    assert (config.out, config.tracking.uri, config.data.cache) == (None, None, None)
    assert config.data.path == "shards"
    assert config.system.frozen.path == "weights"  # type: ignore[attr-defined]
    card = (out / "README.md").read_text()
    for told in (
        "f" * 64,
        "step 40 of 40",
        "| margin |",
        "Stand-ins: generator, identity",
        "not a likeness",
        "Apache-2.0",
    ):
        assert told in card, told
    assert checkpoint.read_header(str(out / "model.safetensors"))[1]["format"] == "pt"
    assert "[DATA.md](DATA.md)" in card


def test_the_data_card_tells_of_the_data_without_names(run_folder: str, tiny_shards: str, tmp_path: Path) -> None:
    export(run_folder, str(tmp_path / "export"))
    card = (tmp_path / "export" / "DATA.md").read_text()
    dataset = open_dataset(tiny_shards)
    assert "nobody is real" in card
    assert "holds audio, photos, `codes_" in card
    assert f"`{dataset.fingerprint}`" in card
    assert f"It has changed: the run was trained on data with the fingerprint `{'f' * 64}`" in card
    for name, size in dataset.manifest.splits.items():
        assert f"| {name} | {size.samples:,} | {size.people:,} | 1 |" in card
    assert not [identity for identity in dataset.manifest.identities if identity in card]


def test_a_data_set_that_is_away_is_said_to_be_so(tiny_shards: str) -> None:
    config = configuration(tiny_shards, "/x")
    away = config.model_copy(update={"data": config.data.model_copy(update={"path": "/mnt/lab/gone"})})
    told = card(away, "e" * 64)
    assert "## gone" in told
    assert f"could not be opened when the card was written; its fingerprint is `{'e' * 64}`" in told
    assert "/mnt" not in told


def test_addresses_and_absolute_paths_become_their_last_part(tiny_shards: str) -> None:
    config = configuration(tiny_shards, "/x")
    mix = [{"path": path, "weight": 1.0} for path in ("s3://bucket/voices", "/data/faces/", "data/here", "~/own")]
    values = config.model_dump(mode="json")
    values["data"] |= {"path": None, "mix": mix}
    assert [s.path for s in portable(build(RunConfig, values, "test")).data.mix or []] == [
        "voices",
        "faces",
        "data/here",
        "own",
    ]


def test_what_was_measured_of_this_step_is_on_the_card(tiny_shards: str, system: System, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    write(folder, configuration(tiny_shards, folder), system)
    line = {"R@1": {"value": 0.25, "low": 0.1, "high": 0.4}}
    split = {"what": "unseen people", "gallery": 100, "chance": {"R@1": 0.01}}
    split["by"] = {
        "referee": {"lines": {"voice": line}},
        "judge": {"lines": {"voice": {"R@1": line["R@1"] | {"value": 0.5}}}},
    }
    measured = {"step": 40, "data": {"fingerprint": "f" * 64}, "splits": {"test": split}}
    store.write_bytes(f"{folder}/eval.json", json.dumps(measured).encode())
    for step in (40, 10):
        export(folder, str(tmp_path / str(step)), step)
    assert "| R@1 | 25.0 % | 50.0 % | 1.0 % |" in (tmp_path / "40" / "README.md").read_text()
    assert "R@1" not in (tmp_path / "10" / "README.md").read_text()


@pytest.mark.parametrize(
    ("which", "told"),
    [
        (30, None),
        (35, r"there is no checkpoint of step 35; the steps with one are 10, 20, 30, 40$"),
        ("best", None),
    ],
)
def test_a_run_gives_the_system_of_the_checkpoint_that_is_named(
    run_folder: str, which: str | int, told: str | None
) -> None:
    run = Run.open(run_folder)
    if told is not None:
        with pytest.raises(V2FError, match=told):
            run.system(which=which)
        return
    step = {"best": 20}.get(str(which), which)
    assert run.checkpoint(which).endswith(f"step-{step:08d}")
    assert not run.system(which=which).training


def test_what_cannot_be_exported_is_told_in_one_line(run_folder: str, tiny_shards: str, tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    with pytest.raises(V2FError, match="the folder is not empty; name a new one"):
        export(run_folder, str(tmp_path))
    out = str(tmp_path / "export")
    export(run_folder, out)
    with pytest.raises(V2FError, match="an export holds one checkpoint only; there is none to choose"):
        export(out, str(tmp_path / "again"))
    values = Run.open(run_folder).config.model_dump(mode="json")
    for best, reason in (
        (None, "its configuration does not set train.best; name a step, or latest"),
        ({"metric": "loss"}, "no checkpoint with a meter 'loss'"),
    ):
        values["train"]["best"] = best
        other = tmp_path / str(best is None)
        other.mkdir()
        (other / "config.yaml").write_text(dump_yaml(build(RunConfig, values, "test")))
        (other / "checkpoints").symlink_to(f"{run_folder}/checkpoints")
        with pytest.raises(V2FError, match=reason):
            export(str(other), str(tmp_path / "none"), "best")
    model = Path(out) / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(V2FError, match=r"model\.safetensors: not a safetensors file; it was cut or damaged"):
        Run.open(out).system()


def test_wrong_words_for_a_checkpoint_are_wrong_usage(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["checkpoint", "export", "run", "-o", "out", "--checkpoint", "newest"])
    assert "'newest' is not best, latest or a step" in capsys.readouterr().err


def test_runs_and_exports_may_lie_in_an_object_store(
    s3_root: str, tiny_shards: str, system: System, capsys: Any
) -> None:
    write(f"{s3_root}/run", configuration(tiny_shards, "x"), system)
    assert main(["checkpoint", "verify", f"{s3_root}/run"]) == 0
    assert main(["checkpoint", "show", f"{s3_root}/run/checkpoints/step-00000020"]) == 0
    assert "step: 20" in capsys.readouterr().out
    assert main(["checkpoint", "export", f"{s3_root}/run", "-o", f"{s3_root}/export", "--checkpoint", "best"]) == 0
    assert Run.open(f"{s3_root}/export").step == 20
    assert Run.open(f"{s3_root}/export").system() is not None


# ------------------------------------------------------------------------------------------------- at full size


TRAINED = 70_768_832  # parameters; 12 bytes each, weights and Adam's two moments in fp32, are 849 MB


def test_the_final_systems_checkpoint_is_0_85_gb_and_dealt_evenly() -> None:
    config = load_config(str(REPOSITORY / "launch" / "recipes" / "thesis-final.yaml")).system
    assert isinstance(config, VoiceStyledFace.Config)
    with torch.device("meta"):
        encoder = WaveformEncoder(config.encoder)
        mapping = StyleMapping(config.mapping, channels=encoder.channels, n_styles=18, style_dim=512)
    sizes: dict[str, int] = {}
    for module, net in {"encoder": encoder, "mapping": mapping}.items():
        sizes |= {f"model/{module}.{name}": tensor.nbytes for name, tensor in net.state_dict().items()}
        for name, parameter in net.named_parameters():  # a step, and Adam's two moments
            sizes |= {
                f"optim/supervised/{module}.{name}/{slot}": parameter.nbytes for slot in ("exp_avg", "exp_avg_sq")
            }
            sizes[f"optim/supervised/{module}.{name}/step"] = 4
    assert sum(sizes.values()) == pytest.approx(12 * TRAINED, rel=0.001)
    for world_size in (8, 64):
        filled = [sum(sizes[name] for name in share) for share in deal(sizes, world_size)]
        assert max(filled) - min(filled) <= 0.02 * max(filled)


@pytest.mark.slow
def test_a_checkpoint_of_the_final_system_holds_what_is_trained_and_adams_state(tmp_path: Path) -> None:
    """The thesis's encoder and mapping beside its generator, after a step of the engine; 849 MB go to the disk."""
    command = [sys.executable, str(REPOSITORY / "tests" / "workers" / "full_size.py"), str(tmp_path / "checkpoints")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parameters"] == TRAINED
    assert found["moments"] == 2 * found["parameters"]
    assert found["roots"] == ["model/encoder", "model/mapping", "optim/supervised"]  # nothing of StyleGAN2
    assert found["frozen"] == 30_370_060
    assert found["bytes"] == pytest.approx(12 * TRAINED, rel=0.001)
    assert max(found["parts"]) - min(found["parts"]) < 0.02 * found["bytes"]
    assert found["equal"]
    assert found["peak_above_tensors"] < 1.2 * max(found["parts"])
