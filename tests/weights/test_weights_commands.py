"""``v2f weights``: the table, the mirror, the converter, as an operator calls them."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from weights import fake_nvidia

from bench.random_weights import alexnet, ecapa, ge2e, squeezenet
from v2f.cli import main
from v2f.errors import V2FError
from v2f.nn.frozen import LPIPS
from v2f.nn.stylegan2 import Generator
from v2f.weights import ECAPAWeights, FrozenConfig, GE2EWeights, Requirements, commands, load
from v2f.weights.catalogue import CATALOGUE, Published
from v2f.weights.files import SUMS, sha256_of

LAUNCH = Path(__file__).parents[2] / "launch" / "recipes"
NEEDED = ("stylegan2-ffhq-1024", "stylegan2-ffhq-256", "ir-se50", "lpips-alex", "psp-ffhq-encode")
NEEDED += ("psp-ffhq-frontalization",)  # for packing, optional
NEEDED += ("facenet-vggface2",)  # the referee of `v2f eval`
NEEDED += ("ecapa-voxceleb", "ge2e-resemblyzer", "unispeech-sat-base", "wen-voice-embedding")  # voice encoders
NEEDED += ("resnet50",)  # a backbone of a classifier of pictures
ALEX = "alexnet-owt-7be5be79.pth"


def frozen(path: Path, **roles: object) -> FrozenConfig:
    return FrozenConfig.model_validate({"path": str(path), **roles})


def required(path: Path, **roles: object) -> Requirements:
    return frozen(path, **roles).requirements(with_referee=True)


def shown(needs: dict[str, Requirements], load: bool = False) -> tuple[int, str]:
    text = io.StringIO()
    missing = commands.show(needs, load, Console(file=text, width=250))
    return missing, text.getvalue()


@pytest.fixture
def alex(tmp_path: Path) -> Path:
    """A folder with AlexNet's layout under its published name."""
    folder = tmp_path / "have"
    folder.mkdir()
    torch.save(alexnet(), folder / ALEX)
    return folder


def test_the_table_says_what_each_recipe_needs_and_where_it_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(LAUNCH, tmp_path / "launch" / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(Published, "installed", lambda published: None)
    assert main(["weights"]) == 1  # something is missing
    text = capsys.readouterr().out
    for published in CATALOGUE.values():
        needed = published.name in NEEDED
        assert (f"{published.name}: {published.what}" in text) == needed
        if needed:
            assert published.page in text
            assert published.licence.split(",")[0].split(";")[0] in text
    for user in ("ge2e: encoder", "thesis-final: generator", "thesis-small: identity", "thesis-voxceleb2: codes"):
        assert user in text
    (line,) = (line for line in text.splitlines() if line.startswith("no weights needed"))
    told, listed = line.split(": ")
    assert told == "no weights needed, these use the package's stand-ins"
    free = {"face-gan", "face-gan-collapse", "large-batch", "pairs", "quickstart", "speaker-pretrain", "synthetic"}
    assert free <= set(listed.split(", "))
    assert not any(name.startswith("thesis") for name in listed.split(", "))
    assert "missing or refused: 14; see docs/weights.md" in text
    assert main(["weights", "table", "launch/recipes/quickstart.yaml"]) == 0


def test_the_table_tells_how_a_file_was_verified(alex: Path) -> None:
    needs = {"a": required(alex, perceptual={"net": "lpips"})}
    digest = sha256_of(str(alex / ALEX))
    missing, text = shown(needs)
    assert missing == 0
    assert digest[:16] in text
    unknown = "NOT the file published under this name"  # random numbers are not ImageNet's
    assert commands.required_weights(needs)[0].state == unknown
    pinned = {"a": required(alex, perceptual={"net": "lpips", "sha256": digest})}
    assert commands.required_weights(pinned, load=True)[0].state == f"{unknown}; as in the recipe; loaded strictly"
    (alex / SUMS).write_text(f"{digest}  {ALEX}\n")
    assert commands.required_weights(needs)[0].state == f"{unknown}; as in SHA256SUMS"
    (alex / SUMS).write_text(f"{'0' * 64}  {ALEX}\n")
    (row,) = commands.required_weights(needs)
    assert row.state.startswith("REFUSED: its SHA-256 is")
    assert "SHA256SUMS says 0000" in row.state
    assert shown(needs)[0] == 1


def test_a_file_with_the_published_checksum_is_said_to_be_the_published_one(
    alex: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256_of(str(alex / ALEX))
    monkeypatch.setitem(CATALOGUE, "lpips-alex", replace(CATALOGUE["lpips-alex"], sha256=digest[:8]))
    assert "as published" in shown({"a": required(alex, perceptual={"net": "lpips"})})[1]


def test_loading_for_the_table_finds_what_the_checksum_cannot(alex: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, alex / ALEX)
    needs = {"a": required(alex, perceptual={"net": "lpips"})}
    assert commands.required_weights(needs)[0].good
    (row,) = commands.required_weights(needs, load=True)
    assert not row.good
    assert row.state.startswith("REFUSED: these are not the weights of torchvision's alexnet")
    assert shown(needs, load=True)[0] == 1


def test_each_file_that_recipes_name_has_a_line_of_its_own(alex: Path) -> None:
    needs = {
        "a": required(alex, perceptual={"net": "lpips"}),
        "b": required(alex, perceptual={"net": "lpips"}),
        "c": required(alex, perceptual={"net": "lpips", "file": "nothere.pth"}),
    }
    first, second = commands.required_weights(needs)
    assert (first.needed_by, first.good) == (["a: perceptual", "b: perceptual"], True)
    assert (second.needed_by, second.state) == (["c: perceptual"], "missing")
    assert shown(needs)[0] == 1


def test_a_narrow_terminal_gets_a_list(alex: Path) -> None:
    text = io.StringIO()
    commands.show({"a": required(alex, perceptual={"net": "lpips"})}, False, Console(file=text, width=80))
    assert f"  file: {alex / ALEX}" in text.getvalue()
    assert "┃" not in text.getvalue()


def test_recipes_of_one_name_and_overrides_are_told_apart(
    tmp_path: Path, alex: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copyfile(LAUNCH / "thesis-small.yaml", tmp_path / folder / "own.yaml")
    paths = [str(tmp_path / folder / "own.yaml") for folder in ("one", "two")]
    overrides = [f"system.frozen.path={alex}", "system.frozen.generator={net: stand_in}", "system.image_size=64"]
    overrides += ["system.frozen.identity={net: stand_in}", "system.frozen.referee=null"]
    assert main(["weights", "table", *paths, *overrides]) == 0
    text = "".join(capsys.readouterr().out.split())
    assert all(f"{path}:perceptual" in text for path in paths)


def test_a_mirror_holds_what_is_needed_with_checksums_and_licenses(
    alex: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mirror"
    needs = {"a": required(alex, perceptual={"net": "lpips"}), "b": required(alex, identity={"net": "facenet"})}
    assert commands.mirror(str(target), needs, str(alex)) == 2  # with its referee
    told = capsys.readouterr().out
    assert "missing: get ir-se50 from" in told
    assert "missing: get facenet-vggface2 from https://github.com/timesler/facenet-pytorch" in told
    assert sorted(path.name for path in target.iterdir()) == sorted([ALEX, SUMS, commands.LICENCES])
    assert (target / SUMS).read_text() == f"{sha256_of(str(target / ALEX))}  {ALEX}\n"
    assert "BSD-3-Clause" in (target / commands.LICENCES).read_text()
    nets = load(frozen(target, perceptual={"net": "lpips"}))
    assert isinstance(nets.perceptual, LPIPS)
    torch.save(squeezenet(), alex / "squeezenet1_1-b8a52dc0.pth")
    assert commands.mirror(str(target), {"a": needs["a"]}, str(alex)) == 0  # what is known is taken along
    assert "squeezenet1_1-b8a52dc0.pth" in (target / SUMS).read_text()
    (alex / ALEX).unlink()  # a mirror stands alone, and can be completed later
    assert commands.mirror(str(target), {"a": needs["a"]}, str(alex)) == 0


def test_a_mirror_takes_what_is_needed_from_an_installed_package(
    alex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "pretrained.pt"
    torch.save(ge2e(), inside)
    monkeypatch.setattr(Published, "installed", lambda published: str(inside) if published.package else None)
    needs = {"a": Requirements(str(alex), {"encoder": GE2EWeights(net="ge2e")})}
    assert "NOT the file published under this name" in shown(needs, load=True)[1]  # random numbers
    assert commands.mirror(str(tmp_path / "mirror"), needs, str(alex)) == 0
    assert "pretrained.pt: GE2E, a speaker encoder" in (tmp_path / "mirror" / commands.LICENCES).read_text()
    assert sha256_of(str(tmp_path / "mirror" / "pretrained.pt")) == sha256_of(str(inside))
    others = {"a": required(alex, perceptual={"net": "lpips"})}
    assert commands.mirror(str(tmp_path / "other"), others, str(alex)) == 0
    assert not (tmp_path / "other" / "pretrained.pt").exists()
    inside.unlink()
    monkeypatch.setattr(Published, "installed", lambda published: None)
    capsys.readouterr()
    assert commands.mirror(str(tmp_path / "none"), needs, str(alex)) == 1
    assert "missing: `pip install --no-deps resemblyzer==0.1.4`, or get ge2e-resemblyzer" in capsys.readouterr().out


def test_a_mirror_takes_no_file_that_does_not_load_and_is_mended_by_one_that_does(alex: Path, tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, alex / ALEX)
    needs, target = {"a": required(alex, perceptual={"net": "lpips"})}, tmp_path / "mirror"
    with pytest.raises(V2FError, match=rf"{alex / ALEX}: these are not the weights of torchvision's alexnet"):
        commands.mirror(str(target), needs, str(alex))
    assert not target.exists()
    torch.save(alexnet(), alex / ALEX)
    assert commands.mirror(str(target), needs, str(alex)) == 0
    first = (target / SUMS).read_text()
    torch.save({**alexnet(), "classifier.6.bias": torch.zeros(1000)}, alex / ALEX)  # another file that loads, too
    assert commands.mirror(str(target), needs, str(alex)) == 0
    assert (target / SUMS).read_text() != first
    load(frozen(target, perceptual={"net": "lpips"}))


def test_a_mirror_holds_what_a_recipe_names_itself_and_says_what_it_is_not(
    alex: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alex / ALEX).rename(alex / "mine.pth")
    needs = {"a": required(alex, perceptual={"net": "lpips", "file": "mine.pth"})}
    assert commands.mirror(str(tmp_path / "mirror"), needs, str(alex)) == 0
    assert "no checksum is known" in capsys.readouterr().out
    load(frozen(tmp_path / "mirror", perceptual={"net": "lpips", "file": "mine.pth"}))
    (alex / "mine.pth").rename(alex / ALEX)
    assert commands.mirror(str(tmp_path / "mirror"), {"a": required(alex, perceptual={"net": "lpips"})}, str(alex)) == 0
    assert "NOT the file published under this name" in capsys.readouterr().out
    with pytest.raises(V2FError, match="nowhere: no such folder of weights; name one with --from"):
        commands.mirror(str(tmp_path / "mirror"), needs, "nowhere")


def test_a_voice_encoder_is_in_the_table_and_in_the_mirror(tmp_path: Path) -> None:
    needs = {"a": Requirements(str(tmp_path), {"encoder": ECAPAWeights(net="ecapa")})}
    missing, text = shown(needs)
    assert (missing, "a: encoder" in text, "spkrec-ecapa-voxceleb" in text) == (1, True, True)
    torch.save(ecapa(), tmp_path / "embedding_model.ckpt")
    (row,) = commands.required_weights(needs, load=True)
    assert row.state == "no checksum is known; loaded strictly"
    assert commands.mirror(str(tmp_path / "mirror"), needs, str(tmp_path)) == 0
    assert "Apache-2.0" in (tmp_path / "mirror" / commands.LICENCES).read_text()


def test_nothing_is_fetched_unless_asked_and_then_only_what_is_known(
    alex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file:// address stands for the authors' server."""
    asked = []

    def address() -> str:
        asked.append(ALEX)
        return (alex / ALEX).as_uri()

    here = replace(CATALOGUE["lpips-alex"], direct=address, sha256=sha256_of(str(alex / ALEX))[:8])
    monkeypatch.setitem(CATALOGUE, "lpips-alex", here)
    (tmp_path / "none").mkdir()
    needs = {"a": required(tmp_path / "none", perceptual={"net": "lpips"})}
    target = str(tmp_path / "mirror")
    assert commands.mirror(target, needs, str(tmp_path / "none")) == 1
    assert not asked
    assert commands.mirror(target, needs, str(tmp_path / "none"), download=True) == 0
    assert asked == [ALEX]
    monkeypatch.setitem(CATALOGUE, "lpips-alex", replace(here, sha256="00000000"))
    with pytest.raises(V2FError, match="expected 00000000; the file was discarded"):
        commands.mirror(str(tmp_path / "other"), needs, str(tmp_path / "none"), download=True)
    assert not (tmp_path / "other").exists()
    monkeypatch.setitem(CATALOGUE, "lpips-alex", replace(here, direct=lambda: (alex / "no.pth").as_uri()))
    with pytest.raises(V2FError, match=r"download failed .* download it by hand: get lpips-alex"):
        commands.mirror(str(tmp_path / "third"), needs, str(tmp_path / "none"), download=True)


def test_the_direct_addresses_are_those_of_the_files() -> None:
    direct = {published.files[0]: published.direct() for published in CATALOGUE.values() if published.direct}
    assert len(direct) == 6
    assert all(address.startswith("https://") and address.endswith("/" + name) for name, address in direct.items())


def test_convert_makes_weights_of_a_pickle_that_a_recipe_can_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "ada.pkl", tmp_path / "out.safetensors"
    source.write_bytes(fake_nvidia.pickled(fake_nvidia.generator(size=32)))
    assert main(["weights", "convert", str(source), str(target)]) == 0
    nets = load(frozen(tmp_path, generator={"net": "stylegan2", "size": 32, "file": "out.safetensors"}, codes=None))
    assert isinstance(nets.generator, Generator)
    assert nets.generator.size == 32
    assert nets.generator.latent_avg.abs().sum() > 0


def test_a_mirror_converts_a_pickle_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(CATALOGUE["stylegan2-ffhq-256"], files=("small.safetensors",))
    monkeypatch.setitem(CATALOGUE, "stylegan2-ffhq-256", small)
    monkeypatch.setattr(commands, "_default_config", lambda published: frozen(tmp_path, generator=net).generator)
    net = {"net": "stylegan2", "size": 32, "file": "small.safetensors"}
    needed = {"net": "stylegan2", "size": 256}
    have = tmp_path / "have"
    have.mkdir()
    (have / "small.pkl").write_bytes(fake_nvidia.pickled(fake_nvidia.generator(size=32)))
    target = tmp_path / "mirror"
    assert commands.mirror(str(target), {"a": required(have, generator=needed)}, str(have)) == 0
    assert (target / "small.safetensors").is_file()
