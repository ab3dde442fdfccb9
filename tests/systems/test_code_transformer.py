"""Codes from classes: a source whose entropy is known, losses by hand, drawing, what is refused, the protocol."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from systems.small import SMALL
from torch import Tensor

from v2f.config import build
from v2f.data.codes import StoredTokens
from v2f.data.encoding import encode
from v2f.data.loader import read_split
from v2f.data.manifest import ArrayKind, Dataset, open_dataset
from v2f.data.shards import write_manifest, write_shard
from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.generate import generate
from v2f.keyed import keyed_rng
from v2f.nn.sampling import Sampling
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.system import Batch
from v2f.systems.code_transformer import CodeTransformer
from v2f.training.trainer import fit

CLASSES = ["calm", "wild"]
STEPS = {"calm": (0.85, 0.15, 0.0, 0.0), "wild": (0.1, 0.2, 0.3, 0.4)}  # a code goes 0, 1, 2 or 3 further
CODES, LENGTH = 8, 24
TOP: dict[str, Any] = {
    "name": "code_transformer",
    "level": "top",
    "length": LENGTH,
    "classes": CLASSES,
    "vocabulary": CODES,
    "width": 32,
    "heads": 2,
    "layers": [1, 1],
    "ff": 64,
    "norm_first": True,
}


def made(**changes: Any) -> CodeTransformer:
    torch.manual_seed(0)
    return CodeTransformer(build(CodeTransformer.Config, TOP | changes, "test"))


def chain(name: str, rng: np.random.Generator, count: int) -> Tensor:
    """``count`` sequences of a class of the source; the first code is the number of the class."""
    steps = rng.choice(4, p=STEPS[name], size=(count, LENGTH))
    steps[:, 0] = CLASSES.index(name)
    return torch.from_numpy(steps.cumsum(1) % CODES)


def chains(key: int, count: int) -> Batch:
    rng = keyed_rng(0x3A, key)
    code = torch.cat([chain(name, rng, count // 2) for name in CLASSES])
    return {"top": code, "label": torch.arange(2).repeat_interleave(count // 2), "weight": torch.ones(count)}


def test_perplexity_of_a_markov_source_is_its_entropy_rate_within_2_percent() -> None:
    """A code takes the entropy of a step, the first one of a sequence nothing: it is the class."""
    entropy = sum(-p * math.log(p) for steps in STEPS.values() for p in steps if p) / 2
    system = made(aligned=True)
    adam = torch.optim.Adam(system.parameters(), betas=(0.9, 0.98))
    steps = 300
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        adam.zero_grad()
        system.loss("supervised", chains(step, 64), step)["total"].backward()
        adam.step()
    meters = system.eval().meters([chains(10_000, 1024)])
    assert meters["perplexity"] ** (LENGTH / (LENGTH - 1)) == pytest.approx(math.exp(entropy), rel=0.02)
    drawn = system.draw(torch.tensor([[0], [1]]).repeat(64, 1), torch.rand(128, LENGTH), Sampling())
    went = ((drawn[:, 1:] - drawn[:, :-1]) % CODES).reshape(64, 2, -1)
    for number, name in enumerate(CLASSES):
        share = F.one_hot(went[:, number].flatten(), CODES).double().mean(0)[:4]
        torch.testing.assert_close(share, torch.tensor(STEPS[name]).double(), rtol=0, atol=0.05)


# ------------------------------------------------------------------------------------------- the system


def test_the_loss_is_the_cross_entropy_of_the_codes_and_the_end() -> None:
    system, batch = made().double().eval(), chains(1, 6)
    read = torch.cat([torch.full((6, 1), CODES), batch["top"]], 1)
    wanted = torch.cat([batch["top"], torch.full((6, 1), CODES + 1)], 1)
    nats = -system.transformer(batch["label"][:, None], read).log_softmax(2).gather(2, wanted[..., None])[..., 0]
    found = system.loss("supervised", batch, 0)
    torch.testing.assert_close(found["total"], nats.mean())
    torch.testing.assert_close(found["codes"], nats[:, :-1].mean())
    scores = system.score(batch["label"][:, None], batch["top"])
    torch.testing.assert_close(scores.nats.double(), nats[:, :-1], rtol=1e-5, atol=1e-6)
    meters = system.meters([batch])
    assert meters["cross_entropy"] == pytest.approx(nats[:, :-1].mean().item(), rel=1e-5)
    assert meters["accuracy_5"] >= meters["accuracy"] == pytest.approx((scores.rank == 0).double().mean().item())
    flat = chains(1, 6) | {"top": torch.arange(CODES).repeat(6, LENGTH // CODES)}
    assert system.meters([flat])["perplexity_of_frequencies"] == pytest.approx(CODES)


def test_codes_are_masked_by_the_numbers_of_their_slot_and_in_training_only() -> None:
    system, batch = made(masked=0.25), chains(1, 4)
    keep = torch.ones(4, LENGTH)
    keep[:, 5] = 0.2
    seen: list[Tensor] = []
    system.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    for training in (True, False):
        system.train(training).loss("supervised", batch | {"keep": keep}, 0)
    trained, held_out = seen
    assert (trained[:, 6] == system.transformer.masked).all()  # BEGIN is the first
    assert torch.equal(trained[:, 7:], batch["top"][:, 6:])
    assert torch.equal(held_out[:, 1:], batch["top"])


@pytest.mark.parametrize("kind", ["naive", "greedy", "top-k", "top-p"])
def test_a_draw_depends_on_its_own_numbers_alone(kind: str) -> None:
    system, how = made().eval(), Sampling.model_validate({"kind": kind, "k": 3, "p": 0.8})
    condition, uniform = torch.tensor([[0], [1], [1], [0]]), torch.rand(4, LENGTH)
    whole = system.draw(condition, uniform, how)
    assert whole.dtype == torch.int64
    assert 0 <= whole.min() <= whole.max() < CODES
    assert torch.equal(whole, system.draw(condition, uniform, how))
    alone = [system.draw(condition[n : n + 1], uniform[n : n + 1], how) for n in range(4)]
    assert torch.equal(whole, torch.cat(alone))
    if kind == "naive":
        assert not torch.equal(whole, system.draw(condition, uniform.flip(1), how))


def test_what_is_drawn_greedily_is_the_likeliest_of_a_forward_pass() -> None:
    system, condition = made().eval(), torch.tensor([[0], [1]])
    drawn = system.draw(condition, torch.zeros(2, LENGTH), Sampling(kind="greedy"))
    read = torch.cat([torch.full((2, 1), CODES), drawn], 1)
    assert torch.equal(system.transformer(condition, read)[:, :-1, :CODES].argmax(2), drawn)


def test_the_verdict_tells_who_does_not_learn_and_who_learns_by_heart() -> None:
    system = made()
    meters = {"perplexity": 3.0, "perplexity_of_frequencies": 7.0, "cross_entropy": math.log(3)}
    history = {"loss/supervised/codes": [1.0] * 10}
    assert system.verdict(meters, history) is None
    assert system.verdict(meters | {"perplexity": 7.0}, {"loss/supervised/codes": [1.0] * 9}) is None
    assert str(system.verdict(meters | {"perplexity": 7.5}, history)).startswith("NOT LEARNING: the perplexity of held")
    assert str(system.verdict(meters, {"loss/supervised/codes": [0.5] * 10})).startswith("OVERFITTING: held-out codes")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": None}, "set either classes, for codes from a class, or top"),
        ({"top": 6}, "set either classes"),
        ({"classes": None, "top": 6}, "24 top codes from 6 top codes: only bottom codes"),
        ({"classes": None, "top": 7, "level": "bottom"}, "24 bottom codes from 7 top codes: only bottom codes"),
        ({"classes": ["a", "a"]}, "names a class twice"),
        ({"vocabulary": 2, "classes": ["a", "b", "c"]}, "3 classes need a vocabulary of as many, it is 2"),
        ({"width": 33}, "width 33 is not an even multiple of the 2 heads"),
        ({"layers": [0, 2]}, r"layers are \[0, 2\]"),
        ({"dropout": 0.1}, "dropout is 0.1, but its masks would not belong to a slot.*set it to 0, and masked"),
    ],
)
def test_a_wrong_configuration_is_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(V2FError, match=told) as caught:
        made(**changes)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------- data, training, evaluation


def make_data(root: Path, length: int = LENGTH) -> Dataset:
    """Sequences of the source in the shards."""
    rows = []
    for number, (split, count) in enumerate({"train": 24, "valid": 8, "test": 8}.items()):
        batch, samples = chains(number, count), []
        for n, (code, label) in enumerate(zip(batch["top"], batch["label"], strict=True)):
            extra = {"class": CLASSES[label]}
            arrays = {"codes_top": code[:length].numpy().astype(np.uint16)}
            about: dict[str, Any] = {"identity": f"{split}{n}", "split": split, "source": "chains", "extra": extra}
            samples.append((f"{split}-{n}", f"{split}{n}", encode(f"{split}-{n}", arrays=arrays, **about)))
        rows.append(write_shard(str(root), f"{split}-0.tar", split, samples))
    return write_manifest(str(root), rows, {}, arrays={"codes_top": ArrayKind(dtype="uint16", shape=[length])})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("codes")
    values = {
        "name": "chains",
        "out": str(folder / "run"),
        "seed": 1,
        "system": TOP | {"optimizer": {"lr": {"transformer": 3e-3}}},
        "data": {"path": make_data(folder / "data").root, "batch": 8, "workers": 0, "window": 8, "partitions": 4},
        "train": {"steps": 30, "threads": 1, "log_every": 10, "validate_samples": 8},
        "tracking": {"uri": None},
    }
    return Run.open(fit(build(RunConfig, values, "test")))


def test_the_protocol_tells_likelihood_and_what_frequencies_reach(run: Run) -> None:
    result = evaluate(run, progress=False)
    split = result["splits"]["test"]
    lines = split["by"]["likelihood"]["lines"]
    system, dataset = run.system(), open_dataset(run.config.data.home)
    assert isinstance(system, CodeTransformer)
    batch = next(iter(read_split(dataset.split("test"), system.transforms(), 8)))
    nats_NT = system.score(batch["label"][:, None], batch["top"]).nats
    own = lines["coded"]
    assert own["cross_entropy"]["value"] == pytest.approx(nats_NT.mean().item(), rel=1e-5)
    assert own["cross_entropy"]["low"] < own["cross_entropy"]["value"] < own["cross_entropy"]["high"]
    assert own["perplexity"]["high"] == pytest.approx(math.exp(own["cross_entropy"]["high"]))
    assert own["accuracy_1"]["value"] <= own["accuracy_5"]["value"] <= own["accuracy_20"]["value"] == 1  # of 8 codes
    assert own["drawn_perplexity"] >= 1
    trained = next(iter(read_split(dataset.split("train"), system.transforms(), 24)))["top"]
    share = (trained.flatten().bincount(minlength=CODES) + 1) / (trained.numel() + CODES)
    assert lines["frequencies"]["cross_entropy"]["value"] == pytest.approx(-share.log()[batch["top"]].mean().item())
    people = json.loads(Path(run.path, "eval-people.json").read_text())["splits"]["test"]
    assert people["shares"]["likelihood"]["cross_entropy"] == pytest.approx(nats_NT.mean(1).tolist(), rel=1e-5)


def test_codes_are_drawn_from_a_label_by_hand(run: Run, tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        path = generate(run, None, str(tmp_path / "codes.json"), label="wild", seed=seed)
        found.append(json.loads(Path(path).read_text())["values"])
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == LENGTH
    with pytest.raises(V2FError, match="there is no label 'odd'"):
        generate(run, None, str(tmp_path / "codes.json"), label="odd")


def test_data_with_other_codes_are_refused_before_training(tmp_path: Path) -> None:
    dataset = make_data(tmp_path / "short", length=20)
    for reads, told in (
        (StoredTokens("top", LENGTH, CODES), r"the top codes of a sample are uint16 \[20\], the system takes 24"),
        (
            StoredTokens("bottom", LENGTH, CODES),
            "its samples have no bottom codes; write them with `v2f shards precomp",
        ),
    ):
        with pytest.raises(V2FError, match=told):
            reads.bind([dataset])
    with pytest.raises(V2FError, match=r"its top codes are 0 to \d, the system knows codes below 3"):
        next(iter(read_split(dataset.split("test"), {"top": StoredTokens("top", 20, 3).bind([dataset])}, 4)))


def test_the_small_configuration_shows_every_key() -> None:
    config = build(CodeTransformer.Config, SMALL["code_transformer"], "test")
    assert config.model_fields_set >= {"top", "norm_first", "aligned", "shared", "masked", "sampling", "ema"}
