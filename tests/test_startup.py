"""What a command imports before it does anything, which costs seconds at each call. See bench/startup.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from untrained import export

RUNS = """
import json, os, sys
from v2f.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as left:
    code = left.code
print(json.dumps([code, os.environ.get("OMP_WAIT_POLICY"), sorted(sys.modules)]))
"""
OWN = {"v2f", "v2f.cli", "v2f.errors", "v2f.options", "v2f.prepare", "v2f.prepare.commands"}
OWN |= {"v2f.storage", "v2f.storage.address", "v2f.training", "v2f.training.command"}


def imported(*command: str) -> set[str]:
    """The modules that a command of v2f has imported by its end."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}  # another test's command
    done = subprocess.run([sys.executable, "-c", RUNS, *command], capture_output=True, text=True, timeout=120, env=env)
    code, waiting, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert waiting == ("PASSIVE" if "torch" in modules else None), "threads that wait for work burn CPU"
    return set(modules)


@pytest.mark.parametrize("command", [["--help"], ["generate", "--help"], ["shards", "pack", "--help"], ["--version"]])
def test_help_imports_nothing_but_the_standard_library(command):
    bare = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    new = imported(*command) - set(json.loads(bare.stdout))
    assert {name for name in new if name.partition(".")[0] not in sys.stdlib_module_names} <= OWN


NOT_TO_DRAW = (
    "accelerate av boto3 botocore deepspeed facenet_pytorch fsspec gradio IPython jinja2 lpips matplotlib mlflow"
)
NOT_TO_DRAW += (
    " pandas requests rich scipy sklearn sympy torch._dynamo torch._inductor torchaudio torchvision transformers"
)
NOT_TO_DRAW += (
    " v2f.evaluation v2f.engine v2f.prepare v2f.training.trainer v2f.web v2f.world.fingerprint v2f.world.portraits"
    " v2f.world.syllables v2f.world.voices"
)


def test_a_face_is_drawn_without_what_only_training_measuring_and_serving_need(tmp_path: Path):
    voice = 0.3 * np.sin(np.arange(16000) / 10) * np.sin(np.arange(16000) / 1000)
    soundfile.write(tmp_path / "voice.wav", voice, 16000)
    face = tmp_path / "face.png"
    modules = imported("generate", export(tmp_path), str(tmp_path / "voice.wav"), "-o", str(face))
    assert face.exists()
    assert "torch" in modules
    assert modules & set(NOT_TO_DRAW.split()) == set()
