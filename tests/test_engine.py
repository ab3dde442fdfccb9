"""Promise 3: one process, several ranks and accumulation are the same function."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from systems.small import SMALL

from v2f.system import Schedule

WORKER = Path(__file__).parent / "workers" / "gradients.py"


def first_gradients(values: dict, folder: Path, ranks: int, micro: int | None) -> dict[str, torch.Tensor]:
    """Gradients of the first global batch, on ``ranks`` gloo processes, in float64."""
    folder.mkdir()
    values = values | {"out": str(folder / "run"), "train": values["train"] | {"precision": "fp64"}}
    (folder / "config.json").write_text(json.dumps(values))
    out = folder / "gradients.safetensors"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(WORKER), str(folder / "config.json"), str(out), str(micro or "none")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return safetensors.torch.load_file(out)


@pytest.mark.slow
@pytest.mark.parametrize("system", sorted(SMALL))
def test_gradients_do_not_know_ranks_or_accumulation(run_values, tmp_path, system):
    values = run_values(system)
    one = first_gradients(values, tmp_path / "one", 1, None)
    assert one["_world"].item() == 1
    gradients = {k: g for k, g in one.items() if not k.startswith("_")}
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert largest > 0
    assert all(g.dtype == torch.float64 for g in gradients.values())
    for name, ranks, micro in [("two", 2, None), ("accumulated", 1, 2), ("both", 2, 2)]:
        other = first_gradients(values, tmp_path / name, ranks, micro)
        assert other["_world"].item() == ranks
        assert other.keys() == one.keys()
        worst = max(float((gradients[k] - other[k]).abs().max()) for k in gradients)
        assert worst <= 1e-9 * largest, f"{name}: gradients differ by {worst / largest:.1e} of the largest"
        assert abs(float(one["_total"] - other["_total"])) <= 1e-12 * abs(float(one["_total"]))


def test_a_schedule_warms_up_and_decays_as_its_words_say():
    warm = Schedule(warmup=100)
    assert [warm.at(s, 1000) for s in (0, 49, 99, 100, 900)] == [0.01, 0.5, 1.0, 1.0, 1.0]
    epochs = Schedule(decay="exponential", factor=0.95, every=200)
    assert [epochs.at(s, 10**9) for s in (0, 200, 400)] == pytest.approx([1, 0.95, 0.95**2])
    cosine = Schedule(warmup=100, decay="cosine", factor=0.1)
    assert [cosine.at(s, 1100) for s in (100, 600, 1100, 2000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
