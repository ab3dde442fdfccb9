"""The referee: a second opinion besides the judge's, which no part of training uses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pages import Page
from torch import Tensor

from v2f import standins
from v2f.config import build
from v2f.errors import V2FError
from v2f.evaluation import referee
from v2f.evaluation.evaluate import evaluate, points
from v2f.evaluation.observers import first_observer, observers_of
from v2f.nn.frozen import FaceIdentity
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.standins.portraits import HELD_OUT, REFEREE_SEED, SEED, render, seed_of
from v2f.systems import SYSTEMS
from v2f.tracking.mlflow_client import log_metrics
from v2f.training.trainer import fit
from v2f.web.report import report
from v2f.weights import FaceNetWeights, FrozenConfig, IRSE50Weights, JudgeConfig, StandInWeights, files


def reaches(net: Any, made_B3HW: Tensor, photo_N3HW: Tensor, k: int = 10) -> float:
    """R@K by a net: the share of pictures whose own person (the photo with the same index) is among the K nearest."""
    with torch.no_grad():
        cosine_BN = net(made_B3HW) @ net(photo_N3HW).T
    rank_B = (cosine_BN > cosine_BN.diagonal()[:, None]).sum(1)
    return float((rank_B < k).float().mean())


def test_a_picture_made_to_please_the_judge_does_not_please_the_referee() -> None:
    """A hundred steps of gradient ascent on the pixels of other people's photos, toward a person's embedding."""
    people = render(HELD_OUT, 100, 2, seed=7)  # of a world that none of our nets was trained on
    photo_N3HW, other_N3HW = people.images(slice(0, None, 2)), people.images(slice(1, None, 2))
    judge, second = standins.load("identity"), standins.load("referee")
    start_B3HW = other_N3HW[-32:]  # toward the first 32 people, starting from photos of the last 32
    with torch.no_grad():
        wanted_BD = judge(photo_N3HW[:32])
    made = start_B3HW.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([made], lr=0.004)
    for _ in range(100):
        loss = 1 - F.cosine_similarity(judge(made.clamp(-1, 1)), wanted_BD).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = made.detach().clamp(-1, 1)
    assert reaches(judge, other_N3HW, photo_N3HW) > 0.98  # both recognize another photo of the person
    assert reaches(second, other_N3HW, photo_N3HW) > 0.98
    assert reaches(judge, start_B3HW, photo_N3HW) < 0.25  # about chance, because these are other people
    assert reaches(judge, made, photo_N3HW, k=1) == 1
    assert reaches(second, made, photo_N3HW) < 0.35
    assert reaches(second, made, photo_N3HW, k=1) < 0.05


def test_the_referee_is_of_other_people_and_another_make_than_the_judge() -> None:
    assert seed_of("referee") == REFEREE_SEED != SEED == seed_of("identity")
    assert type(standins.load("referee")) is not type(standins.load("identity"))
    with torch.no_grad():
        emb, maps = standins.load("referee").look(torch.zeros(2, 3, 128, 128))
    assert emb.shape == (2, 128)
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 32), (16, 16), (8, 8), (4, 4)]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_training_knows_no_referee(
    name: str, run_values: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building a system, losses, meters, ``best`` and early stopping never load the referee."""
    asked: list[str] = []
    real = standins.load
    monkeypatch.setattr(standins, "load", lambda kind, *more: (asked.append(kind), real(kind, *more))[1])
    monkeypatch.setattr(referee, "load", lambda *_: pytest.fail("a training run asked the referee"))
    values = run_values(name, steps=2, validate_every=1, checkpoint_every=1)
    folder = fit(build(RunConfig, values, "test"))
    run = Run.open(folder)
    assert ("identity" in asked) == (run.config.system.nets is not None)
    assert "referee" not in asked
    assert not [key for key in run.system().state_dict() if "referee" in key]
    assert "referee" not in str(run.info)


def test_both_tell_every_number_the_referee_first(
    run_values: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    values = run_values(steps=2) | {"tracking": {"uri": uri, "experiment": "e"}}
    run = Run.open(fit(build(RunConfig, values, "test")))
    measured = evaluate(run, device="cpu")
    printed = " ".join(capsys.readouterr().out.split())
    assert "these nets are stand-ins, so the numbers hold for the synthetic world only: generator, identity" in printed
    assert measured["stand_ins"][-1] == "referee"
    assert measured["referee"] == {"net": "stand_in", "sha256": standins.checksum("referee")}
    assert printed.index("by the referee, which no loss ever saw") < printed.index("by the judge, the nets that losses")
    for split in measured["splits"].values():
        assert list(split["by"]) == ["referee", "judge"]
        assert first_observer(split)[0] == "referee"
        one, other = split["by"].values()
        assert one["lines"].keys() == other["lines"].keys() >= {"voice", "U1", "U2", "strongest", "generator", "photo"}
        for line, numbers in one["lines"].items():
            assert numbers.keys() == other["lines"][line].keys()
            assert numbers != other["lines"][line]
    page = Page(report(run))
    assert "By the referee, which no loss ever saw" in page.text
    assert "R@10 among 6, by the referee" in page.text
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (kept,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    sent = {name: value for name, value in kept.data.metrics.items() if name.startswith("eval/")}
    assert sent == pytest.approx(points(measured))
    for by in ("referee", "judge"):
        test = measured["splits"]["test"]["by"][by]["lines"]
        assert sent[f"eval/test/{by}/recall_at_5"] == test["voice"]["R@5"]["value"]
        assert sent[f"eval/test/{by}/U2_recall_at_1"] == test["U2"]["R@1"]["value"]
        assert sent[f"eval/test/{by}/energy"] == test["voice"]["picture"]["energy"]
    point = client.get_metric_history(kept.info.run_id, "eval/test/referee/margin")[0]
    assert point.step == 16  # in samples, like all steps


def test_numbers_of_a_run_that_mlflow_does_not_have_are_not_sent(tmp_path: Path) -> None:
    assert not log_metrics(str(tmp_path), {"eval/test/referee/recall_at_1": 0.5}, 8)


@pytest.mark.parametrize(
    ("identity", "named", "taken"),
    [
        (StandInWeights(), None, StandInWeights()),
        (IRSE50Weights(net="ir_se50", channels="rgb"), None, FaceNetWeights(net="facenet")),
        (FaceNetWeights(net="facenet"), None, IRSE50Weights(net="ir_se50", channels="bgr")),
        (StandInWeights(), FaceNetWeights(net="facenet", file="a.pt"), FaceNetWeights(net="facenet", file="a.pt")),
    ],
)
def test_it_is_the_one_that_is_named_or_of_the_other_kind(identity: Any, named: Any, taken: Any) -> None:
    judges = JudgeConfig(identity=identity, referee=named)
    assert judges.effective_referee == taken
    assert "referee" not in judges.user_weights()
    assert ("referee" in judges.user_weights(with_referee=True)) == (not isinstance(taken, StandInWeights))


def test_the_net_of_the_losses_is_no_referee(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"frozen\.referee is ir_se50, .* the net that the losses use: set frozen\.referee to facenet"
    ):
        JudgeConfig.model_validate(
            {"identity": {"net": "ir_se50", "channels": "rgb"}, "referee": {"net": "ir_se50", "channels": "bgr"}}
        )
    judges = FrozenConfig.model_validate({"path": str(random_weights), "referee": {"net": "facenet"}})
    digest = files.sha256_of(str(random_weights / "20180402-114759-vggface2.pt"))
    with pytest.raises(V2FError, match=r"system\.frozen\.referee: its file is that of system\.frozen\.identity"):
        referee.load(judges, digest)


@pytest.mark.parametrize(("net", "channels"), [("facenet", [256, 256, 896, 1792]), ("ir_se50", [64, 128, 256, 512])])
def test_a_net_that_is_brought_looks_as_it_embeds(random_weights: Path, net: str, channels: list[int]) -> None:
    identity = {"net": "facenet"} if net == "ir_se50" else {"net": "ir_se50", "channels": "rgb"}
    second, digest = referee.load(JudgeConfig.model_validate({"path": str(random_weights), "identity": identity}))
    assert isinstance(second, FaceIdentity)
    assert digest is not None
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        emb, maps = second.look(picture)
        assert torch.equal(emb, second(picture))
    assert [m.shape[1] for m in maps] == channels
    assert [m.shape[2] for m in maps] == sorted((m.shape[2] for m in maps), reverse=True)
    assert not second.net._forward_hooks


def test_without_its_weights_the_evaluation_says_loudly_who_told(
    run_values: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(fit(build(RunConfig, run_values(steps=1), "test")))
    values = run.config.model_dump(mode="json")
    values["system"]["frozen"] |= {"referee": {"net": "facenet", "file": None, "sha256": None}, "path": str(tmp_path)}
    changed = build(RunConfig, values, "test")
    object.__setattr__(run, "config", changed)
    observers, about = observers_of(run, run.system())
    assert [observer.name for observer in observers] == ["judge"]
    assert "system.frozen.referee: " in about["why_not"]
    measured = evaluate(run, device="cpu", limit=4)
    assert "no referee: system.frozen.referee: " in " ".join(capsys.readouterr().out.split())
    assert first_observer(measured["splits"]["test"])[0] == "judge"
    assert np.isfinite(measured["splits"]["test"]["by"]["judge"]["meters"]["margin"])
