"""Files of weights: found by name in folders and mirrors, and told apart by their checksums."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from v2f.errors import V2FError
from v2f.storage import store
from v2f.weights import FrozenConfig, IRSE50Weights, StandInWeights, load, locate
from v2f.weights.files import SUMS, find, read, sha256_of, sums_beside


@pytest.fixture(params=["plain", "memory://"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder, and fsspec's memory file system in the place of a remote mirror."""
    if request.param == "plain":
        yield str(tmp_path)
    else:
        yield "memory://mirror/weights"
        fsspec.filesystem("memory").store.clear()


def put(root: str, name: str = "a.pt", value: float = 1.0) -> str:
    path = store.join(root, name)
    buffer = io.BytesIO()
    torch.save({"x": torch.full((3,), value)}, buffer)
    store.write_bytes(path, buffer.getvalue())
    return path


def test_a_file_is_found_by_its_own_path_or_by_the_first_of_its_names(root: str) -> None:
    path = put(root, "b.pt")
    assert find(path, ["other.pt"], "?") == path
    assert find(root, ["a.pt", "b.pt"], "?") == path
    first = put(root, "a.pt")
    assert find(root, ["a.pt", "b.pt"], "?") == first


def test_what_is_not_there_says_where_it_was_looked_for_and_how_to_get_it(root: str) -> None:
    put(root, "b.pt")
    with pytest.raises(V2FError, match=r"contains none of a\.pt, c\.safetensors; get a from there$"):
        find(root, ["a.pt", "c.safetensors"], "get a from there")
    with pytest.raises(V2FError, match=r"nowhere: no such folder; get a from there$"):
        find(store.join(root, "nowhere"), ["a.pt"], "get a from there")
    with pytest.raises(V2FError, match=r"a\.pt: no such weights file; get a from there$"):
        find(store.join(root, "a.pt"), ["a.pt"], "get a from there")
    store.write_bytes(store.join(root, "a.txt"), b"x")
    with pytest.raises(V2FError, match=r"a\.txt: neither a folder of weights nor a file that ends in \.pt"):
        find(store.join(root, "a.txt"), ["a.pt"], "?")


def test_reading_gives_the_tensors_and_the_checksum(root: str) -> None:
    path = put(root)
    content, digest = read(path)
    torch.testing.assert_close(content["x"], torch.ones(3))
    assert digest == sha256_of(path) == hashlib.sha256(store.read_bytes(path)).hexdigest()
    assert read(path, digest)[1] == digest


def test_a_checksum_that_the_configuration_names_must_hold(root: str) -> None:
    path = put(root)
    with pytest.raises(
        V2FError, match=r"its SHA-256 is \w{16}\.\.\., but the configuration says 0{16}\.\.\.; the file is damaged"
    ):
        read(path, "0" * 64)


def test_a_checksum_beside_the_file_must_hold(root: str) -> None:
    path = put(root)
    store.write_bytes(store.join(root, SUMS), f"{sha256_of(path)}  a.pt\n{'1' * 64} *b.pt\n".encode())
    assert sums_beside(root) == {"a.pt": sha256_of(path), "b.pt": "1" * 64}
    read(path)
    put(root, value=2.0)
    with pytest.raises(V2FError, match=r"SHA256SUMS says \w{16}\.\.\."):
        read(path)
    store.write_bytes(store.join(root, SUMS), b"what is this\n")
    with pytest.raises(V2FError, match=r"SHA256SUMS: line 1 is not in the format of sha256sum"):
        read(path)


def test_safetensors_are_read_and_a_damaged_one_is_named(root: str) -> None:
    from safetensors.torch import save

    path = store.join(root, "a.safetensors")
    store.write_bytes(path, save({"x": torch.arange(3.0)}))
    torch.testing.assert_close(read(path)[0]["x"], torch.arange(3.0))
    store.write_bytes(path, save({"x": torch.arange(3.0)})[:-4])
    with pytest.raises(V2FError, match=r"a\.safetensors: truncated, or not a safetensors file"):
        read(path)


def test_a_pickle_of_whole_networks_is_sent_to_the_converter(root: str) -> None:
    path = store.join(root, "ffhq.pkl")
    store.write_bytes(path, b"\x80\x04N.")
    with pytest.raises(V2FError, match=r"ffhq\.pkl: a pickle of whole networks cannot be loaded.*v2f weights convert"):
        read(path)


def test_a_net_is_looked_for_in_the_folder_under_its_own_or_its_usual_name(tmp_path: Path) -> None:
    usual, own = put(str(tmp_path), "model_ir_se50.pth"), put(str(tmp_path), "mine.pth")
    elsewhere = put(str(tmp_path / "elsewhere"), "mine.pth")
    for file, path in ((None, usual), ("mine.pth", own), (elsewhere, elsewhere)):
        assert locate(str(tmp_path), IRSE50Weights(net="ir_se50", channels="rgb", file=file)) == path
    with pytest.raises(V2FError, match=r"get ir-se50 from https://github\.com/TreB1eN/.*docs/weights\.md$"):
        locate(str(tmp_path / "elsewhere"), IRSE50Weights(net="ir_se50", channels="rgb"))


def test_all_files_are_looked_for_before_one_is_read(random_weights: Path) -> None:
    values = {"path": str(random_weights), "generator": {"net": "stylegan2"}, "identity": {"net": "facenet"}}
    values |= {"perceptual": {"net": "lpips", "file": "no.pth"}, "codes": {"net": "psp", "file": "nothing.pt"}}
    with pytest.raises(V2FError, match=r"system\.frozen\.perceptual: .*no\.pth.* \(also missing: codes; `v2f weights`"):
        load(FrozenConfig.model_validate(values))


def test_a_generator_of_a_size_that_nobody_publishes_wants_its_file() -> None:
    with pytest.raises(ValueError, match="no FFHQ generator of 64 px is published: name your own file"):
        FrozenConfig.model_validate({"generator": {"net": "stylegan2", "size": 64}})
    FrozenConfig.model_validate({"generator": {"net": "stylegan2", "size": 64, "file": "own.pt"}})


def test_without_weights_every_net_is_a_stand_in_and_said_to_be_one() -> None:
    nets = load(FrozenConfig())
    assert nets.stand_ins == ["generator", "identity", "perceptual", "codes"]
    assert nets.sha256 == {}
    assert load(FrozenConfig(codes=None)).codes is None


def test_codes_for_another_number_of_styles_than_the_generator_has_are_refused(random_weights: Path) -> None:
    frozen = {"path": str(random_weights), "generator": StandInWeights(), "codes": {"net": "psp"}}
    with pytest.raises(V2FError, match="its codes have 18 styles x 512, but the generator of 64 px takes 10 x"):
        load(FrozenConfig.model_validate(frozen))


def test_a_file_that_two_nets_share_is_one_net_with_one_checksum(random_weights: Path) -> None:
    values = {"path": str(random_weights), "generator": {"net": "psp"}, "codes": {"net": "psp"}}
    nets = load(FrozenConfig.model_validate(values))
    assert nets.stand_ins == ["identity", "perceptual"]
    assert nets.sha256["generator"] == nets.sha256["codes"] == sha256_of(str(random_weights / "psp_ffhq_encode.pt"))
    assert nets.codes is not None
    assert nets.generator.n_latent == nets.codes.n_styles == 18
