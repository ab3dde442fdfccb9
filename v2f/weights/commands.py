"""``v2f weights``: which weights recipes need, which of them exist; a mirror for a site without internet access.

recipes -> needs (role, kind of net) -> files, by name -> checksum -> table | mirror: files, SHA256SUMS, LICENCES.txt
"""

import contextlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from v2f.errors import V2FError
from v2f.storage import store
from v2f.storage.local import scratch_folder
from v2f.weights import (
    DlibWeights,
    ECAPAWeights,
    FaceNetWeights,
    GE2EWeights,
    IRSE50Weights,
    LPIPSWeights,
    PSPEncoderWeights,
    Requirements,
    ResNet50Weights,
    StyleGAN2Weights,
    UniSpeechSATWeights,
    UserWeights,
    WavLMWeights,
    WenGeneratorWeights,
    WenWeights,
    files,
    locate,
    read,
)
from v2f.weights.catalogue import CATALOGUE, Published
from v2f.weights.nvidia import convert
from v2f.weights.runs import RunModule, read_module

LICENCES = "LICENCES.txt"
PACKAGED = {
    "mtcnn": ("packing", "P-, R- and O-Net, inside facenet-pytorch", "MIT"),
    "lpips-linear": ("LPIPS", "its linear weights, version 0.1, inside lpips", "BSD-2-Clause"),
}
HEADINGS = ("weights", "for", "file", "SHA-256", "verified", "license")
WIDE = 120  # columns of a terminal from which on a table reads better than a list
_BLOCK = 1 << 20

Needs = Mapping[str, Requirements]
"""Name of a recipe -> the weights that it needs."""


@dataclass(frozen=True)
class RequiredWeights:
    """One set of weights: the roles that need it, and its file, if there is one."""

    published: Published
    needed_by: list[str]
    path: str | None
    sha256: str | None
    state: str
    """In words: what the checksum matches, ``missing``, or why the file is refused."""
    good: bool
    of_run: bool = False
    """Whether it is a module of a run; ``path`` is then the run."""


def required_weights(needs: Needs, load: bool = False) -> list[RequiredWeights]:
    """The weights that recipes need, in the order of the catalogue, followed by modules of runs.

    With ``load``, files are also loaded, strictly; modules of runs always are. Call it inside
    :func:`v2f.runs.run.reading_runs` if there are modules of runs.
    """
    users_of: dict[tuple[str, str | None, str | None, str | None], list[tuple[str, UserWeights]]] = {}
    for recipe, required in needs.items():
        for role, net in required.user_weights.items():
            try:
                path = locate(required.folder, net)
            except V2FError:
                path = None
            own = net.file if path is None else None
            users_of.setdefault((net.published.name, path, own, net.sha256), []).append((f"{recipe}: {role}", net))
    order = list(CATALOGUE)
    found = []
    for (name, path, own, _), users in sorted(users_of.items(), key=lambda item: order.index(item[0][0])):
        published, who = CATALOGUE[name], [user for user, _ in users]
        if path is None:
            found.append(RequiredWeights(published, who, own, None, "missing", False))
            continue
        try:
            digest = read(users[0][1], path)[1] if load else files.sha256_of(path)
            matches = _checksum_matches(published, path, digest, users[0][1].sha256)
            state, good = matches + ("; loaded strictly" if load else ""), True
        except V2FError as error:
            digest, state, good = None, f"REFUSED: {str(error).removeprefix(f'{path}: ')}", False
        found.append(RequiredWeights(published, who, path, digest, state, good))
    return found + _run_modules(needs)


def _run_modules(needs: Needs) -> list[RequiredWeights]:
    users: dict[RunModule, list[str]] = {}
    for recipe, required in needs.items():
        for role, net in required.run_modules.items():
            users.setdefault(net, []).append(f"{recipe}: {role}")
    found = []
    for net, who in users.items():
        digest, state = None, "a module of a run; loaded strictly"
        try:
            digest = read_module(net, net.published.name)[1]
        except V2FError as error:
            state = f"REFUSED: {str(error).removeprefix(f'{net.published.name}: ')}"
        found.append(RequiredWeights(net.published, who, net.path, digest, state, digest is not None, of_run=True))
    return found


def _checksum_matches(published: Published, path: str, digest: str, configured: str | None) -> str:
    """What the checksum of a file matches, in words; V2FError if the recipe or SHA256SUMS has another."""
    files.check(path, digest, configured)
    folder, _, name = path.rpartition("/")
    words = []
    if published.sha256 is not None and name == published.files[0]:
        known = digest.startswith(published.sha256)
        words.append("as published" if known else "NOT the file published under this name")
    if configured is not None:
        words.append("as in the recipe")
    if name in files.sums_beside(folder or "."):
        words.append(f"as in {files.SUMS}")
    return "; ".join(words) or "no checksum is known"


def show(needs: Needs, load: bool = False, console: Console | None = None) -> int:
    """Print the table and return the number of sets that are missing or refused."""
    console = console or Console(width=None)
    found = required_weights(needs, load)
    lines = [_line(row) for row in found]
    lines += [
        (name, user, where, "", "comes with the package", licence) for name, (user, where, licence) in PACKAGED.items()
    ]
    optional = CATALOGUE["psp-ffhq-frontalization"]
    lines.append((optional.name, "packing, optional", optional.files[0], "", "pairs.psp names it", optional.licence))
    if console.width >= WIDE:
        table = Table(title="weights that the recipes need", title_justify="left", show_lines=True)
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    else:
        for line in lines:
            console.print(f"[bold]{line[0]}[/bold]")
            for heading, cell in zip(HEADINGS[1:], line[1:], strict=True):
                if cell:
                    console.print(f"  {heading}: {cell.replace(chr(10), ', ')}", soft_wrap=True)
    for published in dict.fromkeys([row.published for row in found] + [optional]):
        source = f"checksum: {published.sha256_source}"
        console.print(f"{published.name}: {published.what}\n  {published.page}; {source}", soft_wrap=True)
    stood_in = [recipe for recipe, required in needs.items() if not required]
    if stood_in:
        console.print(f"no weights needed, these use the package's stand-ins: {', '.join(stood_in)}", soft_wrap=True)
    bad = sum(not row.good for row in found)
    console.print(f"missing or refused: {bad}; see docs/weights.md" if bad else "nothing is missing", soft_wrap=True)
    return bad


def _line(row: RequiredWeights) -> tuple[str, ...]:
    """A row of the table: weights, for, file, SHA-256, verified, license."""
    is_file = row.good and row.path and not row.of_run
    there = f"{row.path}, {store.size(row.path) / 1e6:.0f} MB" if is_file and row.path else row.path
    known = f"({row.published.sha256[:16]})" if row.published.sha256 else ""
    return (
        row.published.name,
        "\n".join(row.needed_by),
        there or "\nor ".join(row.published.files),
        row.sha256[:16] if row.sha256 else known,
        row.state if row.good else f"[bold]{row.state}[/bold]",
        row.published.licence,
    )


def mirror(target: str, needs: Needs, source: str, download: bool = False) -> int:
    """Copy the weights that recipes need from ``source`` to the folder or prefix ``target``; the number missing.

    Other files of the catalogue in ``source`` are copied as well (pSp for frontalization, for example), and so are
    files that a recipe names, and needed files inside installed packages. Every file is loaded strictly before it is
    copied. NVIDIA's pickles are converted. ``download`` fetches needed files that can be downloaded without a browser.
    ``target`` then contains the files, ``SHA256SUMS`` and ``LICENCES.txt``; recipes use it as ``system.frozen.path``.
    """
    if not download and not store.exists(source):
        raise V2FError(f"{source}: no such folder of weights; name one with --from")
    needed: dict[str, list[tuple[str, UserWeights]]] = {}
    for required in needs.values():
        for net in required.user_weights.values():
            needed.setdefault(net.published.name, [])
            if net.file is not None:
                with contextlib.suppress(V2FError):  # a missing file is counted below
                    needed[net.published.name].append((locate(required.folder, net), net))
    sums = files.sums_beside(target)
    missing = []
    for published in CATALOGUE.values():
        is_needed = published.name in needed
        with scratch_folder() as scratch:
            here = needed.get(published.name) or [
                (path, _default_config(published))
                for path in _find(published, source, target, scratch, is_needed, download)
            ]
            missing += [published] if is_needed and not here else []
            for path, net in here:
                name = _name_in_mirror(published, path)
                digest = read(net, path)[1]
                matches = _checksum_matches(published, path, digest, net.sha256)
                sums |= _copied(path, store.join(target, name), name, digest, published.beside)
                _write_sums(target, sums)
                at = store.join(target, name)
                print(f"{at}: {published.name}, loaded strictly; SHA-256 {digest[:16]}..., {matches}")
    for published in missing:
        print(f"missing: {published.way_out}")
    for run in dict.fromkeys(net.path for required in needs.values() for net in required.run_modules.values()):
        print(f"not mirrored: {run} is a run; copy the output of `v2f checkpoint export {run}` as well")
    if sums:
        print(f"{target}: {len(sums)} files; use it with system.frozen.path={target}")
    return len(missing)


def _name_in_mirror(published: Published, path: str) -> str:
    """A file's name in a mirror, with its own folder if all weights of this kind are published under one name."""
    parts = path.split("/")
    return "/".join(parts[-2:] if "/" in published.files[0] else parts[-1:])


def _copied(source: str, target: str, name: str, digest: str, beside: Iterable[str]) -> dict[str, str]:
    """Copy a file, and those in the same folder that are read with it; returns the SHA-256 of each, by its name in the
    mirror, where the file itself has the name ``name``."""
    digests = {name: digest}
    if source != target:
        _copy(source, target, digest)
    folder = source.rpartition("/")[0] or "."
    for other in beside:
        read_too = store.join(folder, other)
        if store.exists(read_too):
            copy = store.join(target.rpartition("/")[0], other)
            digests[f"{name.rpartition('/')[0]}/{other}"] = found = files.sha256_of(read_too)
            if read_too != copy:
                _copy(read_too, copy, found)
    return digests


def _write_sums(target: str, sums: Mapping[str, str]) -> None:
    """Write the ``SHA256SUMS`` of each folder of the mirror, and the licences."""
    by_folder: dict[str, dict[str, str]] = {}
    for name, digest in sums.items():
        folder, _, file = name.rpartition("/")
        by_folder.setdefault(folder, {})[file] = digest
    for folder, found in by_folder.items():
        where = store.join(target, folder) if folder else target
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted((files.sums_beside(where) | found).items()))
        store.write_bytes(store.join(where, files.SUMS), lines.encode())
    store.write_bytes(store.join(target, LICENCES), _licences(sums).encode())


def _find(published: Published, source: str, target: str, scratch: str, is_needed: bool, download: bool) -> list[str]:
    """The files of one set of weights: from ``source``, from ``target``, or converted to ``scratch``; if they are
    needed, also from an installed package, or downloaded to ``scratch``."""
    found = files.first_of(source, published.files)
    if found is not None:
        return [store.join(source, found)]
    available = set(store.names(source))
    for name in published.files:
        pickled = name.removesuffix(".safetensors") + ".pkl"
        if name.endswith(".safetensors") and pickled in available:
            convert(store.join(source, pickled), store.join(scratch, name))
            return [store.join(scratch, name)]
    found = files.first_of(target, published.files)
    if found is not None:
        return [store.join(target, found)]
    inside = published.installed() if is_needed else None
    if inside is not None:
        return [inside]
    if is_needed and download and published.direct is not None:
        _fetch(published, store.join(scratch, published.files[0]))
        return [store.join(scratch, published.files[0])]
    return []


def _copy(source: str, target: str, digest: str) -> None:
    """Copy a file; V2FError if the copy's SHA-256 is not ``digest``."""
    local = store.local_path(source)
    with store.replacing(target) as temporary:
        if local is not None:
            shutil.copyfile(local, temporary)
        else:
            with open(temporary, "wb") as file:
                file.write(store.read_bytes(source))
        if files.sha256_of(temporary) != digest:
            raise V2FError(f"{source}: the file changed while it was copied; run the command again")


def _fetch(published: Published, target: str) -> None:
    """Download the published file, with a progress bar; V2FError if it arrives incomplete or is a different file."""
    assert published.direct is not None
    address = published.direct()
    try:
        with store.replacing(target) as temporary, urllib.request.urlopen(address, timeout=60) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            bar = tqdm(total=size or None, unit="B", unit_scale=True, desc=published.name, disable=None)
            with bar, open(temporary, "wb") as file:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
                received = file.tell()
            if size and received != size:
                raise V2FError(f"{address}: received {received} of {size} bytes; run the command again")
            digest = files.sha256_of(temporary)
            if published.sha256 is not None and not digest.startswith(published.sha256):
                raise V2FError(
                    f"{address}: its SHA-256 is {digest[:16]}..., expected {published.sha256[:16]}; "
                    "the file was discarded"
                )
    except (urllib.error.URLError, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise V2FError(
                f"{address}: its certificate is not trusted; set SSL_CERT_FILE to the file of its CA"
            ) from error
        raise V2FError(f"{address}: download failed ({error}); download it by hand: {published.way_out}") from error


def _licences(names: Iterable[str]) -> str:
    """Text for the mirror that says where its files come from and under which licenses."""
    lines = ["Weights of third parties, mirrored for use by v2f, each under its authors' terms:", ""]
    for name in sorted(names):
        for published in CATALOGUE.values():
            if name in published.files:
                lines.append(f"{name}: {published.what}. {published.licence}. {published.page}")
    return "\n".join(lines) + "\n"


def _default_config(published: Published) -> UserWeights:
    """A configuration that reads this set of weights."""
    kind, _, which = published.name.partition("-")
    if kind == "stylegan2":
        return StyleGAN2Weights(net="stylegan2", size=int(which.removeprefix("ffhq-")))  # type: ignore[arg-type]
    if kind == "facenet":
        return FaceNetWeights(net="facenet", trained_on=which)  # type: ignore[arg-type]
    if kind == "dlib":
        return DlibWeights(net="dlib")
    if kind == "lpips":
        return LPIPSWeights(net="lpips", backbone=which)  # type: ignore[arg-type]
    if kind == "resnet50":
        return ResNet50Weights(net="torchvision_resnet50")
    if kind == "ecapa":
        return ECAPAWeights(net="ecapa")
    if kind == "ge2e":
        return GE2EWeights(net="ge2e")
    if kind == "unispeech":
        return UniSpeechSATWeights(net="unispeech_sat")
    if kind == "wavlm":
        return WavLMWeights(net="wavlm")
    if kind == "wen":
        return WenGeneratorWeights(net="wen_generator") if which == "generator" else WenWeights(net="wen")
    return PSPEncoderWeights(net="psp") if kind == "psp" else IRSE50Weights(net="ir_se50", channels="rgb")
