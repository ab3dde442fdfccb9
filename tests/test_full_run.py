"""docs/full-run.md, followed line by line on small trees of files in the layouts of the corpora."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from corpora import portrait, save_jpg, voice, write_m4a, write_video

from bench.full_run import CORPORA, of_the_nets, step_flops
from bench.random_weights import alexnet, facenet, ir_se50, psp, stylegan2
from v2f.data.manifest import open_dataset
from v2f.runs.run import Run

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "full-run.md").read_text()
SIDE = 64  # of the generator here, which takes 10 styles

SBATCH = """#!/bin/bash
# Runs a job of the page at once: packs in two parts; a run on 64 GPUs is only read.
set -eu
while [ $# -gt 0 ]; do
    case $1 in
        --wrap=*) exec bash -eu -c "${1#--wrap=}" ;;
        --*) shift ;;
        *) break ;;
    esac
done
case $1 in
    launch/slurm/pack.sbatch)
        export SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=1 SLURM_ARRAY_TASK_COUNT=2 SLURM_CPUS_PER_TASK=1
        for part in 0 1; do SLURM_ARRAY_TASK_ID=$part bash "$@" >&2; done
        echo 17 ;;
    launch/slurm/train.sbatch)
        python - "${@:2}" > read-by-sbatch <<'END'
import sys
from v2f.runs.config import load_config
print(load_config(sys.argv[1], sys.argv[2:]))
END
        ;;
    *) exit 1 ;;
esac
"""
PREFLIGHT = """#!/bin/bash
# One rank instead of eight, and measurements of a moment.
exec "$REPOSITORY/launch/preflight" "${@/#8/1}" --seconds 0.05
"""


def runnable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def raw_data(raw: Path) -> None:
    """Six people of VoxCeleb1, one of VoxCeleb2, three videos of AVSpeech."""
    one, two = ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"], ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set "]
    for person in range(6):
        part, identity, name = "test" if person < 2 else "dev", f"id{10001 + person}", f"Name_{person}"
        one.append(f"{identity}\t{name}\tm\tIreland\t{part}")
        for clip in range(1 + (person == 1)):
            path = raw / f"vox1/{part}/wav/{identity}/1zcIwhmdeo4/{clip:05d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, voice(person, 4.0), 16000)
        save_jpg(raw / f"VGGFace/{name}/{1:08d}.jpg", portrait(person))
    for person in range(11, 12):
        identity, name = f"id{person:05d}", f"n{person:06d}"
        two.append(f"{identity} ,{name} ,f ,dev ")
        write_m4a(raw / f"vox2/dev/aac/{identity}/21Uxsk56VDQ/00001.m4a", voice(person, 4.0))
        save_jpg(raw / f"VGGFace2/train/{name}/0001_01.jpg", portrait(person))
    (raw / "vox1_meta.csv").write_text("\n".join(one) + "\n")
    (raw / "vox2_meta.csv").write_text("\n".join(two) + "\n")
    lines = []
    for number in range(3):
        wav, face = np.repeat(voice(20 + number, 4.0), 3), portrait(20 + number).resize((240, 240))
        write_video(raw / f"videos/VideoVid-0{number}.mp4", wav, [face] * 20, fps=5)
        lines.append(f"VideoVid-0{number},0.0,4.0,0.5,0.5\n")
    (raw / "avspeech_train.csv").write_text("".join(lines[:2]))
    (raw / "avspeech_test.csv").write_text(lines[2])


def weights(root: Path) -> None:
    """Random numbers in the published layouts, around a generator of 64 px, whose file the small recipe names."""
    for folder in ("downloads", "weights"):
        (root / folder).mkdir()
    torch.save(stylegan2(SIDE), root / "weights" / "own-generator.pt")
    features = {name: tensor for name, tensor in alexnet().items() if name.startswith("features.")}
    files = {
        "psp_ffhq_frontalization.pt": psp(10, SIDE, "ffhq_frontalize"),
        "model_ir_se50.pth": ir_se50(),
        "alexnet-owt-7be5be79.pth": features,
        "20180402-114759-vggface2.pt": facenet(),
    }
    for name, content in files.items():
        torch.save(content, root / "downloads" / name)


def small_recipes(root: Path) -> None:
    """The page's recipes, with the same keys and smaller values."""

    def changed(path: str, change: dict[str, Any]) -> None:
        def merge(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
            assert values.keys() >= more.keys() - {"file", "threads", "workers"}, more.keys() - values.keys()
            return values | {
                k: merge(values[k], v) if isinstance(v, dict) and isinstance(values.get(k), dict) else v
                for k, v in more.items()
            }

        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(yaml.safe_dump(merge(yaml.safe_load((REPOSITORY / path).read_text()), change)))

    encoder = {"channels": [4, 4, 8, 8], "blocks": [1, 1, 1, 1], "stem_stride": 16, "out_channels": 8, "bn_group": 1}
    system = {
        "seconds": 1.0,
        "image_size": SIDE,
        "encoder": encoder,
        "frozen": {"generator": {"net": "stylegan2", "size": SIDE, "file": "own-generator.pt"}},
    }
    train = {"steps": 2, "precision": "fp32", "threads": 1, "log_every": 1}
    train |= {"validate_every": 1, "validate_samples": 2, "checkpoint_every": 2}
    data = {"batch": 2, "workers": 0}
    changed("launch/recipes/thesis-full.yaml", {"system": system, "data": data, "train": train})
    small = {"size": SIDE, "min_seconds": 1.0, "people": {"train": 0.6, "valid": 0.4, "test": 0.0}}
    changed("shards/full-voxceleb.yaml", {"workers": 1, "voxceleb": small | {"seen": 0.3}})
    changed("shards/full-avspeech.yaml", {"workers": 1, "avspeech": small})


@pytest.mark.slow
def test_a_lab_follows_the_page_line_by_line(tmp_path: Path) -> None:
    for folder in ("launch", "k8s", "v2f"):
        (tmp_path / folder).symlink_to(REPOSITORY / folder)
    (tmp_path / "launch").unlink()
    shutil.copytree(REPOSITORY / "launch", tmp_path / "launch", ignore=shutil.ignore_patterns("recipes"))
    runnable(tmp_path / "launch" / "preflight", PREFLIGHT)
    small_recipes(tmp_path)
    raw_data(tmp_path / "data" / "raw")
    weights(tmp_path)
    soundfile.write(tmp_path / "voice.wav", voice(40, 3.0), 16000)
    programs = tmp_path / "programs"
    programs.mkdir()
    runnable(programs / "sbatch", SBATCH)

    lines = "".join(re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    assert lines.count("export LAB=s3://lab/v2f ") == 1
    doctor = 'v2f() { if [ "$1" = doctor ]; then command v2f "$@" >doctor.txt || :; else command v2f "$@"; fi; }\n'
    script = "set -eu\n" + doctor + lines.replace("export LAB=s3://lab/v2f ", f"export LAB={tmp_path}/lab ")
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "REPOSITORY": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    assert "nothing is missing" in done.stdout
    for page in ("trial-voxceleb.html", "trial-avspeech.html", "stats-voxceleb.html", "stats-avspeech.html"):
        assert (tmp_path / page).stat().st_size > 10_000
    for corpus in ("voxceleb", "avspeech"):
        dataset = open_dataset(str(tmp_path / "lab" / corpus))
        assert set(dataset.manifest.splits) >= {"train", "valid", "test"}
        assert dataset.manifest.provenance["precomputed"]["identity"]["net"] == "ir_se50"
    found = (tmp_path / "doctor.txt").read_text()
    assert not re.search(r"^\W*wrong\W+(data|weights|storage)", found, re.MULTILINE), found
    assert "batch=1024" in (tmp_path / "read-by-sbatch").read_text()
    run = Run.open(str(tmp_path / "lab" / "runs" / "thesis-full"))
    assert run.step == 2
    assert run.evaluated is not None
    assert run.evaluated["stand_ins"] == []
    assert (tmp_path / "lab" / "runs" / "thesis-full" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "face.png").stat().st_size > 500


def test_the_numbers_of_the_page_are_those_of_its_command() -> None:
    for name, (people, clips, hours) in CORPORA.items():
        assert re.search(rf"^\| {name} \| {people:,}( videos)? \| {clips:,} \| {hours:,} \|", PAGE, re.MULTILINE)
    nets = of_the_nets()
    assert f"{step_flops(nets) / 1e12:.2f} TFLOP per sample" in PAGE
    face = nets["pSp's encoder"] + nets["generator"]
    assert f"{face / 1e9:.0f} GFLOP per frontalized" in PAGE
    # by hand: the stem of the encoder, 25 taps to 64 channels at 24,000 places, is 0.08 of its 182 GFLOP
    assert nets["encoder"] > 2 * 25 * 64 * 24_000
    assert nets["encoder"] / 1e9 == pytest.approx(182, abs=1)
