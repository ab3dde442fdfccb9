"""What a run takes of another: modules that start from its weights, and frozen nets that are modules of it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
from bare import BareSystem
from systems.small import SMALL
from thread_ranks import on_ranks
from torch import Tensor

from v2f import standins
from v2f.cli import main
from v2f.config import build, dump_yaml
from v2f.errors import V2FError
from v2f.nn.stylegan2 import Generator
from v2f.runs import checkpoint, pretrained
from v2f.runs.config import RunConfig, changes
from v2f.runs.export import export
from v2f.runs.peers import ALONE
from v2f.runs.run import Run, build_system, check_weights, start_from
from v2f.runs.saver import write_record, write_tensors
from v2f.storage import store
from v2f.system import Optimizer, Phase, System, SystemConfig, trained
from v2f.systems import SYSTEMS
from v2f.systems.face_gan import FaceGAN
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.tracking.tracker import Tracker
from v2f.training import run_record
from v2f.training.trainer import fit
from v2f.weights import load
from v2f.weights.commands import mirror
from v2f.weights.files import sha256_of

Values = Callable[..., dict[str, Any]]
State = dict[str, Tensor]


def gan(shards: str, out: str, **more: Any) -> RunConfig:
    values = {
        "name": "gan",
        "out": out,
        "seed": 3,
        "system": SMALL["face_gan"],
        "data": {"path": shards, "batch": 8, "workers": 0, "window": 8, "partitions": 4, "valid": None},
        "train": {"steps": 2, "threads": 1, "log_every": 1, "checkpoint_every": 1},
        "tracking": {"uri": None},
    }
    return build(RunConfig, values | more, "test")


@pytest.fixture(scope="module")
def source(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run, whose generator has a moving average and whose discriminator has none."""
    return fit(gan(tiny_shards, str(tmp_path_factory.mktemp("source") / "run"), seed=8))


def state_of(module: torch.nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def at_the_first_loss(monkeypatch: pytest.MonkeyPatch) -> dict[str, State]:
    """Fills with every module's tensors as the first loss of a training run finds them."""
    seen: dict[str, State] = {}
    real = FaceGAN.loss

    def looking(self: FaceGAN, phase: str, batch: Any, step: int) -> Any:
        for name, module in trained(self).items():
            seen.setdefault(name, state_of(module))
        return real(self, phase, batch, step)

    monkeypatch.setattr(FaceGAN, "loss", looking)
    return seen


# ---------------------------------------------------------------------------------------------------- init_from


def test_a_module_starts_from_the_average_of_a_run_and_the_others_from_the_seed(
    source: str,
    tiny_shards: str,
    tmp_path: Path,
    at_the_first_loss: dict[str, State],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tags: dict[str, str] = {}

    class Watched(Tracker):
        def __init__(self, *args: Any, **options: Any) -> None:
            tags.update(options["tags"])
            super().__init__(*args, **options)

    monkeypatch.setattr(run_record, "Tracker", Watched)
    config = gan(tiny_shards, str(tmp_path / "run"), init_from=[{"run": source, "module": "generator"}])
    folder = fit(config)
    assert same(at_the_first_loss["generator"], state_of(Run.open(source).system().generator))
    assert not same(at_the_first_loss["generator"], state_of(Run.open(source).system(ema=False).generator))
    assert same(at_the_first_loss["discriminator"], state_of(build_system(config).discriminator))

    record = checkpoint.read_state(checkpoint.latest(f"{folder}/checkpoints"))["state"]["init_from"]
    digest = pretrained.digest(at_the_first_loss["generator"])
    about = {"module": "generator", "into": "generator", "step": 2, "averaged": True, "sha256": digest}
    assert record == [{"source": source, **about}]
    assert json.loads((Path(folder) / "run.json").read_text())["init_from"] == record
    told = f"generator from generator of {source}, step 2, the moving averages (SHA-256 {digest[:16]}...)"
    assert f"init_from: {told}" in capsys.readouterr().err
    assert tags["v2f.init_from"] == told


def test_a_run_goes_on_bit_for_bit_when_its_source_is_gone(
    source: str, tiny_shards: str, tmp_path: Path, capsys: Any
) -> None:
    own = str(tmp_path / "source")
    shutil.copytree(source, own)
    taken = [{"run": own, "module": "discriminator", "which": 1}]
    config = gan(tiny_shards, str(tmp_path / "run"), init_from=taken)
    folder = fit(config)
    newest = str(checkpoint.latest(f"{folder}/checkpoints"))
    whole, state = checkpoint.load(newest)
    assert (state["init_from"][0]["step"], state["init_from"][0]["averaged"]) == (1, False)
    shutil.rmtree(own)
    shutil.rmtree(newest)
    fit(config, resume="auto")
    again, resumed = checkpoint.load(newest)
    assert same(whole, again)
    assert resumed["init_from"] == state["init_from"]
    with pytest.raises(V2FError, match=r"the configuration changed \(init_from: \[\{.*\}\] -> \[\]\)"):
        fit(gan(tiny_shards, folder), resume="auto")
    fit(gan(tiny_shards, folder), resume="auto", allow_changes=True)
    assert (
        f"init_from: ignored, because only a first start uses it and this run resumes from {newest}"
        in capsys.readouterr().err
    )
    with pytest.raises(V2FError, match=r"^init_from\.0: .*source: no run there"):
        fit(gan(tiny_shards, str(tmp_path / "other"), init_from=taken))


def on_two(config: RunConfig, systems: list[System]) -> list[Any]:
    found = on_ranks(2, lambda rank: start_from(config, systems[rank.rank], rank))
    return [str(each) if isinstance(each, V2FError) else each for each in found]


def test_ranks_hold_the_same_though_one_reads(source: str, tiny_shards: str, tmp_path: Path) -> None:
    taken = [{"run": source, "module": "generator"}, {"run": source, "module": "discriminator"}]
    config = gan(tiny_shards, "unused", init_from=taken)
    systems = [build_system(config), build_system(config)]
    before = store.statistics().bytes_read
    records = on_two(config, systems)
    once = store.statistics().bytes_read - before
    assert records[0] == records[1]
    assert [record["into"] for record in records[1]] == ["generator", "discriminator"]
    assert same(*(state_of(torch.nn.ModuleDict(trained(system))) for system in systems))
    assert same(state_of(systems[1].generator), state_of(Run.open(source).system().generator))
    before = store.statistics().bytes_read
    for each in taken:
        Run.open(source).pretrained(each["module"])
    assert once == store.statistics().bytes_read - before
    lost = gan(tiny_shards, "unused", init_from=[{"run": str(tmp_path), "module": "generator"}])
    told = on_two(lost, systems)
    assert told == [f"init_from.0: {told[0].removeprefix('init_from.0: ')}", f"rank 0: {told[0]}"]


def starting(config: RunConfig) -> tuple[System, list[dict[str, Any]]]:
    system = build_system(config)
    return system, start_from(config, system, ALONE)


def test_an_export_a_safetensors_file_and_a_pt_are_sources_too(source: str, tiny_shards: str, tmp_path: Path) -> None:
    run = Run.open(source)
    wanted = state_of(run.system().generator)
    export(source, str(tmp_path / "export"))
    # the rest of a run is not asked for by who takes one module of it
    published = {f"net.{name}": tensor for name, tensor in wanted.items()} | {"other.weight": torch.zeros(2)}
    safetensors.torch.save_file({n: t.contiguous() for n, t in published.items()}, tmp_path / "net.safetensors")
    torch.save({"g_ema": wanted, "args": None}, tmp_path / "net.pt")
    half = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in wanted.items()}
    torch.save(half, tmp_path / "double.pth")
    digest = sha256_of(str(tmp_path / "net.pt"))
    sources: list[dict[str, Any]] = [
        {"run": str(tmp_path / "export"), "module": "generator", "sha256": pretrained.digest(wanted)},
        {"file": str(tmp_path / "net.safetensors"), "module": "net", "into": "generator"},
        {"file": str(tmp_path / "net.pt"), "key": "g_ema", "into": "generator", "sha256": digest},
        {"file": str(tmp_path / "double.pth"), "into": "generator"},
    ]
    records = []
    for each in sources:
        system, found = starting(gan(tiny_shards, "unused", init_from=[each]))
        assert same(state_of(system.generator), wanted), each
        records += found
    assert [record["step"] for record in records] == [2, None, None, None]
    assert [record["averaged"] for record in records] == [True, False, False, False]
    assert records[2]["sha256"] == digest

    part = [{"run": source, "module": "generator.norms", "into": "generator.norms"}]
    system, _ = starting(gan(tiny_shards, "unused", init_from=part))
    fresh = build_system(gan(tiny_shards, "unused"))
    assert same(state_of(system.generator.norms), state_of(run.system().generator.norms))
    assert same(state_of(system.generator.convs), state_of(fresh.generator.convs))


def damaged(folder: Path) -> dict[str, Any]:
    part = next(Path(str(checkpoint.latest(f"{folder}/checkpoints"))).glob("part-*.safetensors"))
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    return {"run": str(folder), "module": "generator"}


def diverged(folder: Path) -> dict[str, Any]:
    torch.save({"weight": torch.full((3,), float("nan"))}, folder / "a.pt")
    return {"file": str(folder / "a.pt"), "into": "generator.norms.0"}


def cut(folder: Path) -> dict[str, Any]:
    (folder / "a.pt").write_bytes(b"PK\3\4 and no more")
    return {"file": str(folder / "a.pt"), "into": "generator"}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"module": "discriminator", "into": "generator"}, r"not the weights of the module 'generator': the tensor "),
        ({"module": "encoder", "into": "generator"}, r"has no module 'encoder'; it has discriminator, generator$"),
        ({"module": "generator", "into": "encoder"}, r"this system trains no module 'encoder'; it trains disc"),
        ({"module": "generator", "into": "identity"}, r"this system trains no module 'identity'"),
        ({"module": "generator.norms", "into": "generator.norm"}, r"inside generator there is generator\.linear, gen"),
        ({"module": "generator", "which": 7}, r"there is no checkpoint of step 7; the steps with one are 1, 2$"),
        (
            {"module": "generator", "which": "best"},
            r"its configuration does not set train\.best; name a step, or latest",
        ),
        ({"module": "generator", "sha256": "0" * 64}, r"the SHA-256 of its generator is [0-9a-f]{64}, not the one"),
        (damaged, r"part-.*: damaged \(its SHA-256 does not match\)"),
        (diverged, r"a\.pt: these are not the weights of the module 'generator\.norms\.0': "),
        (cut, r"a\.pt: truncated, or not written by torch\.save; copy it again"),
    ],
)
def test_what_does_not_fit_is_one_line_and_fills_nothing(
    source: str, tiny_shards: str, tmp_path: Path, entry: Any, told: str
) -> None:
    if callable(entry):
        shutil.copytree(source, tmp_path / "run")
        entry = entry(tmp_path / "run")
    taken = entry if "file" in entry else {"run": source} | entry
    config = gan(tiny_shards, "unused", init_from=[taken])
    system = build_system(config)
    with pytest.raises(V2FError, match=told) as error:
        start_from(config, system, ALONE)
    assert str(error.value).startswith("init_from.0: ")
    assert "\n" not in str(error.value)
    assert same(state_of(system), state_of(build_system(config)))


def test_another_shape_is_named(source: str, tiny_shards: str) -> None:
    wider = SMALL["face_gan"] | {"width": 16}
    config = gan(tiny_shards, "unused", system=wider, init_from=[{"run": source, "module": "generator"}])
    with pytest.raises(V2FError, match=r"'generator\.linear\.weight' has the shape \[\d+, 6\], expected \[\d+, 6\]"):
        starting(config)


@pytest.mark.parametrize(
    ("taken", "told"),
    [
        ([{"module": "a"}], "either run or file"),
        ([{"run": "a", "file": "b.pt", "module": "a"}], "either run or file"),
        ([{"run": "a"}], "init_from needs module"),
        ([{"file": "a.pt"}], "init_from needs module"),
        ([{"run": "a", "module": "b", "key": "c"}], r"init_from\.key applies to a file only"),
        ([{"file": "a.pt", "module": "b", "which": 3}], r"init_from\.which applies to a run only"),
        ([{"run": "a", "module": "b"}, {"run": "c", "module": "d", "into": "b.e"}], r"init_from fills b\.e twice"),
        ([{"run": "s3://key:secret@host/a", "module": "b"}], r"an address must not contain credentials"),
        ([{"run": "a", "modul": "b"}], r"unknown key 'init_from\.0\.modul'; did you mean 'init_from\.0\.module'"),
    ],
)
def test_a_source_is_spelled_out(tiny_shards: str, taken: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(V2FError, match=told):
        gan(tiny_shards, "unused", init_from=taken)


def test_an_export_tells_what_its_run_started_from_but_not_where_that_lies(
    source: str, tiny_shards: str, tmp_path: Path
) -> None:
    taken = [{"run": source, "module": "generator"}]
    folder = fit(gan(tiny_shards, str(tmp_path / "run"), init_from=taken, train={"steps": 1, "threads": 1}))
    export(folder, str(tmp_path / "export"))
    everything = b"".join(path.read_bytes() for path in (tmp_path / "export").iterdir())
    assert source.encode() not in everything
    assert "It started from trained weights: generator from generator of run, step 2, the moving averages" in (
        tmp_path / "export" / "README.md"
    ).read_text().replace("\n", " ")
    assert Run.open(str(tmp_path / "export")).config.init_from[0].run == "run"


def test_a_run_is_named_by_its_id_too(source: str, tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("v2f.runs.run.run_folder", lambda run_id, uri: asked.append((run_id, uri)) or source)
    taken = [{"run": "a" * 32, "module": "generator"}]
    tracking = {"uri": "http://mlflow.lab.example"}
    _, records = starting(gan(tiny_shards, "unused", init_from=taken, tracking=tracking))
    assert asked == [("a" * 32, "http://mlflow.lab.example")]
    assert (records[0]["source"], records[0]["step"]) == ("a" * 32, 2)


# --------------------------------------------------------------------------------- a frozen net that is of a run


class Painter(BareSystem):
    """Trains a generator that can take the stand-in's place."""

    class Config(SystemConfig):
        name: Literal["painter"]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.decoder = Generator(**standins.info("generator").config)

    def phases(self) -> list[Phase]:
        return [Phase(name="all", modules={"decoder": self.decoder}, optimizer=Optimizer(lr={"decoder": 1.0}), ema=8)]


@pytest.fixture
def painter(tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run of it with two checkpoints, whose averages are not its weights."""
    monkeypatch.setitem(SYSTEMS, "painter", Painter)
    folder = str(tmp_path / "painter")
    own = gan(tiny_shards, folder, system={"name": "painter"})
    store.write_bytes(f"{folder}/config.yaml", dump_yaml(own).encode())
    for step in (1, 2):
        tensors = {
            name: tensor.detach() + step for name, tensor in checkpoint.module_tensors(build_system(own)).items()
        }
        tensors |= {"ema" + name.removeprefix("model"): tensor * 1.25 for name, tensor in tensors.items()}
        where = f"{folder}/checkpoints/step-{step:08d}"
        part = {"name": "part-0.safetensors", **write_tensors(f"{where}/part-0.safetensors", tensors)}
        write_record(where, step, [part], {"step": step, "config": own.model_dump(mode="json")})
    return folder


def voiced(values: Values, path: str, **more: Any) -> RunConfig:
    generator = {"net": "run", "path": path, "module": "decoder"} | more
    config = values(steps=1)
    return build(RunConfig, config | {"system": config["system"] | {"frozen": {"generator": generator}}}, "test")


def test_a_frozen_net_may_be_a_module_of_a_run(painter: str, run_values: Values) -> None:
    system = build_system(voiced(run_values, painter))
    assert isinstance(system, VoiceStyledFace)
    theirs = Run.open(painter).system().decoder
    w = torch.randn(2, theirs.n_latent, theirs.style_dim, generator=torch.Generator().manual_seed(0))
    w.requires_grad_()
    picture = system.train().generator.synthesis(w)
    assert torch.equal(picture, theirs.synthesis(w))
    assert not torch.equal(picture, Run.open(painter).system(ema=False).decoder.synthesis(w))
    picture.square().mean().backward()
    assert w.grad is not None
    assert w.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in system.generator.parameters())
    assert not any(module.training for module in system.generator.modules())
    assert {name.split(".")[0] for name in checkpoint.module_tensors(system)} == {"model/encoder", "model/mapping"}
    assert "generator" not in system.stand_ins
    assert dict(system.weights) == {"generator": pretrained.digest(theirs.state_dict())}


def test_a_run_goes_on_with_that_module_wherever_it_lies_and_with_no_other(
    painter: str, run_values: Values, tmp_path: Path
) -> None:
    config = voiced(run_values, painter)
    folder = fit(config)
    newest = str(checkpoint.latest(f"{folder}/checkpoints"))
    tensors, state = checkpoint.load(newest)
    assert not any("generator" in name for name in tensors)
    assert list(state["weights"]) == ["generator"]
    export(painter, str(tmp_path / "export"))
    moved = voiced(run_values, str(tmp_path / "export"))
    assert changes(config, moved) == []
    fit(moved, resume="auto")  # its checksum is that of the run's own module
    assert Run.open(folder).system().weights == state["weights"]
    other = voiced(run_values, painter, which=1)
    with pytest.raises(V2FError, match=r"system\.frozen\.generator: .*; bring the same weights \(of a run: that step"):
        check_weights(build_system(other), state, newest)
    shutil.rmtree(painter)
    with pytest.raises(V2FError, match=r"^system\.frozen\.generator: .*painter: no run there"):
        fit(config, resume="auto")


@pytest.mark.parametrize(
    ("role", "net", "told"),
    [
        (
            "generator",
            {"module": "mapping"},
            r"^system\.frozen\.generator: .*it has no module 'mapping'; it has decod",
        ),
        ("generator", {"module": "decoder", "which": 9}, r"there is no checkpoint of step 9"),
        (
            "generator",
            {"module": "decoder", "sha256": "1" * 64},
            r"the configuration says 1{16}\.\.\.; set `which` to the step",
        ),
        (
            "perceptual",
            {"module": "decoder"},
            r"^system\.frozen\.perceptual: decoder of .* is a Generator without 'distance'; choose a module",
        ),
    ],
)
def test_a_module_that_cannot_be_that_net_is_one_line(
    painter: str, run_values: Values, role: str, net: dict[str, Any], told: str
) -> None:
    values = run_values()
    values["system"] = values["system"] | {"frozen": {role: {"net": "run", "path": painter} | net}}
    with pytest.raises(V2FError, match=told) as error:
        build_system(build(RunConfig, values, "test"))
    assert "\n" not in str(error.value)


def test_the_referee_is_of_no_run(painter: str, run_values: Values) -> None:
    values = run_values()
    values["system"] = values["system"] | {"frozen": {"referee": {"net": "run", "path": painter, "module": "decoder"}}}
    with pytest.raises(V2FError, match=r"unknown value 'run'; known: 'stand_in', 'ir_se50', 'facenet'"):
        build(RunConfig, values, "test")


def test_the_table_of_weights_lists_it(
    painter: str, run_values: Values, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    config = voiced(run_values, painter)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(config))
    assert main(["weights", "table", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert "a module of a run; loaded strictly" in text
    assert str(build_system(config).weights["generator"])[:16] in text
    assert mirror(str(tmp_path / "mirror"), {"own": config.system.requirements()}, str(tmp_path)) == 0
    assert (
        f"not mirrored: {painter} is a run; copy the output of `v2f checkpoint export {painter}` as well"
        in capsys.readouterr().out
    )
    shutil.rmtree(painter)
    assert main(["weights", "table", str(recipe)]) == 1
    assert "REFUSED" in capsys.readouterr().out


def test_who_builds_no_run_is_told_who_does(painter: str, run_values: Values) -> None:
    with pytest.raises(AssertionError, match=r"built by v2f\.runs\.run\.build_system"):
        load(voiced(run_values, painter).system.frozen)  # type: ignore[attr-defined]
