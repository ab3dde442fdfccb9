"""``v2f weights``: what recipes need and what of it is there; a mirror for a site without the internet.

recipes -> needs (role, kind of net) -> files, by name -> checksum -> table | mirror: files, SHA256SUMS, LICENCES.txt
"""

import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from v2f import store
from v2f.errors import V2FError
from v2f.weights import (
    Brought,
    FaceNetWeights,
    Frozen,
    IRSE50Weights,
    LPIPSWeights,
    PSPCodes,
    StyleGAN2Weights,
    files,
    locate,
    read,
)
from v2f.weights.catalogue import CATALOGUE, Published
from v2f.weights.nvidia import convert

LICENCES = "LICENCES.txt"
PACKAGED = {
    "mtcnn": ("P-, R- and O-Net, which find faces", "inside facenet-pytorch", "MIT"),
    "lpips-linear": ("LPIPS' linear weights, version 0.1", "inside lpips", "BSD-2-Clause"),
}
_BLOCK = 1 << 20

Needs = Mapping[str, Frozen]
"""Name of a recipe -> the frozen nets that it names."""


@dataclass(frozen=True)
class Row:
    """One set of weights: who needs it, and the file that is there for it, if one is."""

    published: Published
    needed_by: list[str]
    path: str | None
    sha256: str | None
    verified: str


def rows(needs: Needs, load: bool = False) -> list[Row]:
    """What each recipe needs, in the order of the catalogue. With ``load``, files are also loaded, strictly."""
    wanted: dict[str, list[tuple[str, Frozen, Brought]]] = {}
    for recipe, frozen in needs.items():
        for role, net in frozen.brought().items():
            wanted.setdefault(net.published.name, []).append((f"{recipe}: {role}", frozen, net))
    found = []
    for name, published in CATALOGUE.items():
        if name not in wanted:
            continue
        users = [user for user, _, _ in wanted[name]]
        _, frozen, net = wanted[name][0]
        try:
            path = locate(frozen.path, net)
        except V2FError:
            found.append(Row(published, users, None, None, "missing"))
            continue
        if load:
            digest = read(net, path)[1]
            verified = f"{_verified(published, path, digest, net)}; loaded strictly"
        else:
            digest = files.sha256_of(path)
            verified = _verified(published, path, digest, net)
        found.append(Row(published, users, path, digest, verified))
    return found


def _verified(published: Published, path: str, digest: str, net: Brought) -> str:
    """What the checksum of a file agrees with, in words."""
    files.check(path, digest, net.sha256)
    folder, _, name = path.rpartition("/")
    if net.sha256 is not None:
        return "as the recipe says"
    if name in files.sums_beside(folder or "."):
        return f"as {files.SUMS} says"
    if published.sha256 is None or name != published.files[0]:
        return "no checksum is known"
    return "as published" if digest.startswith(published.sha256) else "NOT the file that is known under this name"


def show(needs: Needs, load: bool = False, console: Console | None = None) -> int:
    """Print the table; the number of sets that are missing."""
    console = console or Console(width=None)
    found = rows(needs, load)
    table = Table(title="weights that the recipes need", title_justify="left", show_lines=True)
    for heading in ("weights", "for", "file", "SHA-256", "verified", "licence"):
        table.add_column(heading, overflow="fold")
    for row in found:
        there = f"{row.path}, {store.size(row.path) / 1e6:.0f} MB" if row.path else "\nor ".join(row.published.files)
        digest = row.sha256[:16] if row.sha256 else f"({row.published.sha256[:16]})" if row.published.sha256 else ""
        verified = row.verified if row.path else "[bold]missing[/bold]"
        table.add_row(row.published.name, "\n".join(row.needed_by), there, digest, verified, row.published.licence)
    for name, (what, where, licence) in PACKAGED.items():
        table.add_row(name, what, where, "", "comes with the package", licence)
    console.print(table)
    for row in found:
        source = f"checksum: {row.published.sha256_source}"
        console.print(f"{row.published.name}: {row.published.what}\n  {row.published.page}; {source}", soft_wrap=True)
    missing = sum(row.path is None for row in found)
    stood_in = [recipe for recipe, frozen in needs.items() if not frozen.brought()]
    if stood_in:
        console.print(f"need nothing, they use the stand-ins in the package: {', '.join(stood_in)}", soft_wrap=True)
    console.print("nothing is missing" if not missing else f"missing: {missing}; see docs/weights.md", soft_wrap=True)
    return missing


def mirror(target: str, needs: Needs, source: str, download: bool = False) -> int:
    """Copy what the recipes need from the folder ``source`` to the folder or prefix ``target``; the number missing.

    What else of the catalogue lies in ``source`` is taken along (pSp for frontalisation, say). Every file is loaded
    strictly before it counts. A pickle of NVIDIA's is converted on the way. ``download`` fetches what has an address
    that answers without a browser. ``target`` then holds the files under their usual names, ``SHA256SUMS`` and
    ``LICENCES.txt``; recipes use it as ``system.frozen.path``.
    """
    wanted = {net.published.name for frozen in needs.values() for net in frozen.brought().values()}
    sums = files.sums_beside(target)
    missing = []
    for published in CATALOGUE.values():
        needed = published.name in wanted
        name = _bring(published, source, target, download and needed)
        if name is None:
            missing += [published] if needed else []
            continue
        path = store.join(target, name)
        _, digest = read(_any(published), path)
        sums[name] = digest
        print(f"{path}: {published.name}, loaded strictly, SHA-256 {digest[:16]}...")
    if sums:
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
        store.write_bytes(store.join(target, files.SUMS), lines.encode())
        store.write_bytes(store.join(target, LICENCES), _licences(sums).encode())
    for published in missing:
        print(f"missing: {published.way_out}")
    print(f"{target}: {len(sums)} files; use it with system.frozen.path={target}")
    return len(missing)


def _bring(published: Published, source: str, target: str, download: bool) -> str | None:
    """Put one set of weights into the mirror, if it can be had; the name it has there."""
    beside = set(store.names(source))
    for name in published.files:
        if name in beside:
            _copy(store.join(source, name), store.join(target, name))
            return name
    for name in published.files:
        pickled = name.removesuffix(".safetensors") + ".pkl"
        if name.endswith(".safetensors") and pickled in beside:
            convert(store.join(source, pickled), store.join(target, name))
            return name
    if set(published.files) & set(store.names(target)):
        return next(name for name in published.files if name in store.names(target))
    if download and published.direct is not None:
        _fetch(published, store.join(target, published.files[0]))
        return published.files[0]
    return None


def _copy(source: str, target: str) -> None:
    """A file to another place, refused where it does not agree with the checksums beside it."""
    files.check(source, files.sha256_of(source), None)
    local = store.local_path(source)
    with store.replacing(target) as temporary:
        if local is not None:
            shutil.copyfile(local, temporary)
        else:
            with open(temporary, "wb") as file:
                file.write(store.read_bytes(source))


def _fetch(published: Published, target: str) -> None:
    """Download the published file, with a bar; V2FError where it does not come whole or is another one."""
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
                come = file.tell()
            if size and come != size:
                raise V2FError(f"{address}: {come} of {size} bytes came; run the command again")
            digest = files.sha256_of(temporary)
            if published.sha256 is not None and not digest.startswith(published.sha256):
                raise V2FError(
                    f"{address}: its SHA-256 is {digest[:16]}..., {published.sha256[:16]} is known; not kept"
                )
    except (urllib.error.URLError, OSError) as error:
        raise V2FError(f"{address}: cannot be fetched ({error}); get it by hand: {published.way_out}") from error


def _licences(names: Iterable[str]) -> str:
    """Whose the mirrored files are, for who finds them there."""
    lines = ["Weights of third parties, mirrored for use by v2f. Each under its authors' terms:", ""]
    for name in sorted(names):
        for published in CATALOGUE.values():
            if name in published.files:
                lines.append(f"{name}: {published.what}. {published.licence}. {published.page}")
    return "\n".join(lines) + "\n"


def _any(published: Published) -> Brought:
    """A configuration that reads this set of weights."""
    kind, _, which = published.name.partition("-")
    if kind == "stylegan2":
        return StyleGAN2Weights(net="stylegan2", size=int(which.removeprefix("ffhq-")))  # type: ignore[arg-type]
    if kind == "facenet":
        return FaceNetWeights(net="facenet", trained_on=which)  # type: ignore[arg-type]
    if kind == "lpips":
        return LPIPSWeights(net="lpips", backbone=which)  # type: ignore[arg-type]
    return PSPCodes(net="psp") if kind == "psp" else IRSE50Weights(net="ir_se50", channels="rgb")
