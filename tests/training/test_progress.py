"""How a training run proceeds: means of steps, spikes, goodput."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from v2f.engine import StepResult
from v2f.training.progress import Goodput, GradientNorms, StepMeans


def test_a_spike_is_measured_against_the_norms_before_it_and_a_resumed_run_knows_them():
    norms = GradientNorms(6.0, {})
    for i in range(31):
        norms.add("g", 1.0 + 0.1 * (-1) ** i)
    assert norms.limit("g") is None  # too few
    norms.add("g", 1.1)
    limit = norms.limit("g")
    assert limit == pytest.approx(1.0 + 6 * 0.1, abs=0.05)
    assert GradientNorms(6.0, json.loads(json.dumps(norms.past))).limit("g") == limit
    assert norms.limit("d") is None
    norms.add("g", math.nan)
    norms.add("g", math.inf)
    assert norms.limit("g") == limit
    for _ in range(128):  # another level is no spike for ever
        norms.add("g", 10.0)
    assert norms.limit("g") == pytest.approx(10.0)
    assert len(norms.past["g"]) == 128


def test_a_step_that_is_not_finite_takes_nothing_from_the_means_of_the_others():
    reader = SimpleNamespace(bytes_read=0, requests=0)
    means = StepMeans()
    for loss, norm, skipped in [
        (1.0, 2.0, ""),
        (math.nan, math.nan, "loss"),
        (5.0, math.inf, "gradient"),
        (3.0, 4, ""),
    ]:
        means.add("g", StepResult({"total": torch.tensor(loss)}, norm, {"g": 0.1}, skipped, 0, 0.0))
    numbers = means.take(reader)
    assert (numbers["loss/g/total"], numbers["grad_norm/g"], numbers["skipped/g"]) == (2.0, 3.0, 0.5)
    means.add("g", StepResult({"total": torch.tensor(9.0)}, 9.0, {"g": 0.1}, "spike", 0, 0.0))
    assert means.take(reader)["loss/g/total"] == 9.0
    means.add("g", StepResult({"total": torch.tensor(math.nan)}, math.nan, {"g": 0.1}, "loss", 0, 0.0))
    numbers = means.take(reader)
    assert "loss/g/total" not in numbers
    assert numbers["skipped/g"] == 1.0


def test_without_a_sigma_nothing_is_a_spike():
    norms = GradientNorms(None, {})
    for _ in range(200):
        norms.add("g", 1.0)
    assert norms.limit("g") is None
    assert norms.past == {}


def test_goodput_counts_steps_that_are_kept_over_all_starts(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("v2f.training.progress.time.time", lambda: now[0])
    first = Goodput(None)
    now[0] += 10
    first.step(6.0)
    assert first.numbers() == {"time/goodput": 0.6, "time/starts": 1.0}
    state = json.loads(json.dumps(first.state()))
    now[0] += 5
    first.step(5.0)  # after the save: lost
    now[0] += 85
    second = Goodput(state)
    assert second.numbers() == {"time/goodput": 0.06, "time/starts": 2.0}
    now[0] += 20
    second.step(6.0)
    now[0] += 1
    second.step(1.0)
    assert second.numbers() == {"time/goodput": 13 / 121, "time/starts": 2.0, "time/restart_seconds": 110.0}


def test_starts_without_a_checkpoint_are_counted():
    state = Goodput(None).state()
    assert Goodput(state, 1).numbers()["time/starts"] == 2
    assert Goodput(state, 5).numbers()["time/starts"] == 5
    assert Goodput(Goodput(state, 5).state(), 1).numbers()["time/starts"] == 6
