"""``v2f weights``: what recipes need and what of it is there; a mirror for a site without the internet.

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
    Brought,
    FaceNetWeights,
    IRSE50Weights,
    Judges,
    LPIPSWeights,
    PSPCodes,
    StyleGAN2Weights,
    files,
    locate,
    read,
)
from v2f.weights.catalogue import CATALOGUE, Published
from v2f.weights.nvidia import convert
from v2f.weights.runs import OfRun, read_module

LICENCES = "LICENCES.txt"
PACKAGED = {
    "mtcnn": ("packing", "P-, R- and O-Net, inside facenet-pytorch", "MIT"),
    "lpips-linear": ("LPIPS", "its linear weights, version 0.1, inside lpips", "BSD-2-Clause"),
}
HEADINGS = ("weights", "for", "file", "SHA-256", "verified", "licence")
WIDE = 120  # columns of a terminal from which on a table reads better than a list
_BLOCK = 1 << 20

Needs = Mapping[str, Judges]
"""Name of a recipe -> the frozen nets that it names."""


@dataclass(frozen=True)
class Row:
    """One set of weights: who needs it, and the file that is there for it, if one is."""

    published: Published
    needed_by: list[str]
    path: str | None
    sha256: str | None
    state: str
    """In words: what the checksum agrees with, ``missing``, or why the file is refused."""
    good: bool
    of_run: bool = False
    """Whether it is a module of a run, and ``path`` that run."""


def rows(needs: Needs, load: bool = False) -> list[Row]:
    """What each recipe needs, in the order of the catalogue, and then modules of runs, which
    :func:`v2f.runs.run.reading_runs` lets be read. With ``load``, files are also loaded, strictly, as those always are.
    """
    wanted: dict[tuple[str, str | None, str | None, str | None], list[tuple[str, Brought]]] = {}
    for recipe, frozen in needs.items():
        for role, net in frozen.wanted().items():
            try:
                path = locate(frozen.path, net)
            except V2FError:
                path = None
            own = net.file if path is None else None
            wanted.setdefault((net.published.name, path, own, net.sha256), []).append((f"{recipe}: {role}", net))
    order = list(CATALOGUE)
    found = []
    for (name, path, own, _), users in sorted(wanted.items(), key=lambda item: order.index(item[0][0])):
        published, who = CATALOGUE[name], [user for user, _ in users]
        if path is None:
            found.append(Row(published, who, own, None, "missing", False))
            continue
        try:
            digest = read(users[0][1], path)[1] if load else files.sha256_of(path)
            agrees = _agreement(published, path, digest, users[0][1].sha256)
            state, good = agrees + ("; loaded strictly" if load else ""), True
        except V2FError as error:
            digest, state, good = None, f"REFUSED: {str(error).removeprefix(f'{path}: ')}", False
        found.append(Row(published, who, path, digest, state, good))
    return found + _rows_of_runs(needs)


def _rows_of_runs(needs: Needs) -> list[Row]:
    users: dict[OfRun, list[str]] = {}
    for recipe, frozen in needs.items():
        for role, net in frozen.of_runs().items():
            users.setdefault(net, []).append(f"{recipe}: {role}")
    found = []
    for net, who in users.items():
        digest, state = None, "a module of a run; loaded strictly"
        try:
            digest = read_module(net, net.published.name)[1]
        except V2FError as error:
            state = f"REFUSED: {str(error).removeprefix(f'{net.published.name}: ')}"
        found.append(Row(net.published, who, net.path, digest, state, digest is not None, of_run=True))
    return found


def _agreement(published: Published, path: str, digest: str, wanted: str | None) -> str:
    """What the checksum of a file agrees with, in words; V2FError where the recipe or SHA256SUMS say another."""
    files.check(path, digest, wanted)
    folder, _, name = path.rpartition("/")
    words = []
    if published.sha256 is not None and name == published.files[0]:
        known = digest.startswith(published.sha256)
        words.append("as published" if known else "NOT the file that is known under this name")
    if wanted is not None:
        words.append("as the recipe says")
    if name in files.sums_beside(folder or "."):
        words.append(f"as {files.SUMS} says")
    return "; ".join(words) or "no checksum is known"


def show(needs: Needs, load: bool = False, console: Console | None = None) -> int:
    """Print the table; the number of sets that are missing or refused."""
    console = console or Console(width=None)
    found = rows(needs, load)
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
    stood_in = [recipe for recipe, frozen in needs.items() if not frozen.wanted() and not frozen.of_runs()]
    if stood_in:
        console.print(f"need nothing, they use the stand-ins in the package: {', '.join(stood_in)}", soft_wrap=True)
    bad = sum(not row.good for row in found)
    console.print(f"missing or refused: {bad}; see docs/weights.md" if bad else "nothing is missing", soft_wrap=True)
    return bad


def _line(row: Row) -> tuple[str, ...]:
    """A row of the table: weights, for, file, SHA-256, verified, licence."""
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
    """Copy what the recipes need from the folder ``source`` to the folder or prefix ``target``; the number missing.

    What else of the catalogue lies in ``source`` is taken along (pSp for frontalisation, say), and so is a file that a
    recipe names. Every file is loaded strictly before it is copied. A pickle of NVIDIA's is converted on the way.
    ``download`` fetches what is needed and has an address that answers without a browser. ``target`` then holds the
    files, ``SHA256SUMS`` and ``LICENCES.txt``; recipes use it as ``system.frozen.path``.
    """
    if not download and not store.exists(source):
        raise V2FError(f"{source}: there is no such folder of weights; name one with --from")
    wanted: dict[str, list[tuple[str, Brought]]] = {}
    for frozen in needs.values():
        for net in frozen.wanted().values():
            wanted.setdefault(net.published.name, [])
            if net.file is not None:
                with contextlib.suppress(V2FError):  # what is not there is counted as missing below
                    wanted[net.published.name].append((locate(frozen.path, net), net))
    sums = files.sums_beside(target)
    missing = []
    for published in CATALOGUE.values():
        needed = published.name in wanted
        with scratch_folder() as scratch:
            here = wanted.get(published.name) or [
                (path, _any(published)) for path in _find(published, source, target, scratch, download and needed)
            ]
            missing += [published] if needed and not here else []
            for path, net in here:
                name = path.rpartition("/")[2]
                digest = read(net, path)[1]
                agrees = _agreement(published, path, digest, net.sha256)
                if path != store.join(target, name):
                    _copy(path, store.join(target, name), digest)
                sums[name] = digest
                _write_sums(target, sums)
                print(
                    f"{store.join(target, name)}: {published.name}, loaded strictly; SHA-256 {digest[:16]}..., {agrees}"
                )
    for published in missing:
        print(f"missing: {published.way_out}")
    for run in dict.fromkeys(net.path for frozen in needs.values() for net in frozen.of_runs().values()):
        print(f"not mirrored: {run} is a run; take `v2f checkpoint export {run}` along")
    if sums:
        print(f"{target}: {len(sums)} files; use it with system.frozen.path={target}")
    return len(missing)


def _write_sums(target: str, sums: Mapping[str, str]) -> None:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    store.write_bytes(store.join(target, files.SUMS), lines.encode())
    store.write_bytes(store.join(target, LICENCES), _licences(sums).encode())


def _find(published: Published, source: str, target: str, scratch: str, download: bool) -> list[str]:
    """Where one set of weights can be had, if it can: in ``source``, in ``target``, or made in ``scratch``."""
    beside = set(store.names(source))
    for name in published.files:
        if name in beside:
            return [store.join(source, name)]
    for name in published.files:
        pickled = name.removesuffix(".safetensors") + ".pkl"
        if name.endswith(".safetensors") and pickled in beside:
            convert(store.join(source, pickled), store.join(scratch, name))
            return [store.join(scratch, name)]
    there = set(store.names(target))
    for name in published.files:
        if name in there:
            return [store.join(target, name)]
    if download and published.direct is not None:
        _fetch(published, store.join(scratch, published.files[0]))
        return [store.join(scratch, published.files[0])]
    return []


def _copy(source: str, target: str, digest: str) -> None:
    """A file to another place; V2FError where other bytes arrive than were loaded."""
    local = store.local_path(source)
    with store.replacing(target) as temporary:
        if local is not None:
            shutil.copyfile(local, temporary)
        else:
            with open(temporary, "wb") as file:
                file.write(store.read_bytes(source))
        if files.sha256_of(temporary) != digest:
            raise V2FError(f"{source}: it changed while it was copied; run the command again")


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
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise V2FError(
                f"{address}: its certificate is not trusted; name the file of its CA in SSL_CERT_FILE"
            ) from error
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
