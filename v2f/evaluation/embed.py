"""``v2f embed``: embeddings of every recording and photo in a folder, as arrays for other programs.

    photo     --middle square, the side of the training--> identity embeddings [E], by the judge and by the referee
    recording --windows--> the mean of their w+ [L,D] --> the face made from it --> the same embeddings

Files are read a few at a time and rows are written as they are ready, so a folder can have any size.

NPZ (readable with ``allow_pickle=False``): ``photo_file`` [P], ``photo_judge`` and ``photo_referee`` [P,E];
``recording_file`` and ``recording_doubt`` [R], ``recording_w`` [R,L,D], ``recording_judge`` and ``recording_referee``
[R,E]; ``left_out_file`` and ``left_out_why``; ``about``, in JSON. Parquet: a row for each file (``kind``, ``file``,
``doubt``, ``judge``, ``referee``, ``w`` flat), and ``about`` and ``left_out`` in the file's metadata. If there is no
referee, no codes w+ or no photos, the NPZ has no such array and the Parquet file has nulls. ``doubt``: why a sound is
hardly speech, so that its face means nothing; empty if it is speech.

Shape letters: P photos, R recordings, E embedding width, L styles, D style width, T samples, H side.
"""

import abc
import contextlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from v2f import __version__, generate
from v2f.data.audio import UnusableError, decode_voice, likeness
from v2f.data.sample import MAX_SECONDS
from v2f.data.transforms import square
from v2f.errors import V2FError
from v2f.evaluation.observers import BATCH, Observer, in_batches, look, looks, observers_of, seen
from v2f.given import MAX_PHOTO_SIDE, SHORTEST_S
from v2f.nn import float32_products
from v2f.prepare import steps
from v2f.prepare.folder import PICTURE, SOUND
from v2f.prepare.names import is_text, printable
from v2f.runs.run import Run
from v2f.storage import store
from v2f.system import Picture, System, device_of

FileKind = Literal["photo", "recording"]
Columns = Mapping[str, NDArray[np.float32]]

_RECORDINGS = 8  # at once; each may have 64 windows
_PRINTED = 5  # of the files that were left out

T = TypeVar("T")


@dataclass
class Embedded:
    """How many rows of each kind were written, and which files were left out, with the reason."""

    photos: int = 0
    recordings: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def embed(
    run: Run, folder: str, output: str, *, which: str | int = "latest", device: str | None = None, quiet: bool = False
) -> Embedded:
    """Write the embeddings of all files below ``folder`` to ``output`` (``.npz`` or ``.parquet``).

    Photos are not aligned, so they should be cropped like those of the data set. ``device``: None uses the GPU if there
    is one. Files that cannot be read, or whose names are those of neither a recording nor a photo, are left out, named
    and counted. The output is written completely or not at all. V2FError if the run makes no face from a voice, if no
    net looks at its faces, if no file can be read, or for another suffix.
    """
    table = _table_for(output)
    float32_products(tf32=False)
    system = run.system(which=which).to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    voice_input = generate.voice_input(run, system)
    observers, second = observers_of(run, system)
    if not observers:
        raise V2FError(f"{run.path}: no net looks at its faces, so they cannot be embedded")
    names = store.tree(folder)
    done = Embedded()
    bar = tqdm(total=len(names), unit="file", desc=f"embedding {folder}", disable=True if quiet else None)
    with store.replacing(output) as temporary, bar, table(temporary) as rows:
        readers = _Readers(folder, system, voice_input.sample_rate, done, bar)
        for photos in _parts(readers.photos(names), BATCH):
            found = look(observers, np.stack([photo for _, photo in photos]), device_of(system))
            rows.add("photo", [name for name, _ in photos], {by: one.emb_MD for by, one in found.items()})
            done.photos += len(photos)
        for recordings in _parts(readers.recordings(names), _RECORDINGS):
            columns = _of_voices(system, observers, [wav for _, wav in recordings], voice_input.frames)
            doubts = [likeness(wav, voice_input.sample_rate).doubt or "" for _, wav in recordings]
            rows.add("recording", [name for name, _ in recordings], columns, doubts)
            done.recordings += len(recordings)
        if not done.photos + done.recordings:
            first = next((f"; {name}: {why}" for name, why in done.left_out.items()), "")
            raise V2FError(f"{folder}: none of {len(names)} files is a recording or a photo that can be read{first}")
        about: dict[str, Any] = {"software": f"v2f {__version__}", "run": run.config.name, "step": run.step_of(which)}
        about |= {"judge": "the identity net that the losses look at", "referee": second}
        about |= {"stand_ins": list(system.stand_ins), "disclaimer": generate.DISCLAIMER}
        rows.finish(about, done.left_out)
    if not quiet:
        _print_summary(output, done)
    return done


def _print_summary(output: str, done: Embedded) -> None:
    print(f"{output}: {done.photos:,} photos, {done.recordings:,} recordings; {len(done.left_out):,} files left out")
    for name, why in islice(done.left_out.items(), _PRINTED):
        print(f"left out: {name}: {why}")
    if len(done.left_out) > _PRINTED:
        print(f"... and {len(done.left_out) - _PRINTED:,} more, listed in {output}")


def _of_voices(
    system: System, observers: Sequence[Observer], wav_R: Sequence[NDArray[np.float32]], frames: int
) -> Columns:
    """w+ of voices, and the embeddings of the faces made from them."""
    w_RLD, face_R3HH = generate.faces_of(system, wav_R, frames)
    found = looks(observers, in_batches(lambda img: seen(observers, img), face_R3HH.cpu(), device_of(system)))
    columns: dict[str, NDArray[np.float32]] = {by: one.emb_MD for by, one in found.items()}
    return columns if w_RLD is None else columns | {"w": w_RLD.float().cpu().numpy()}


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """``items`` in lists of ``size``."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


@dataclass
class _Readers:
    """Reads files one by one; files that it cannot read go into ``done.left_out``."""

    folder: str
    system: System
    rate: int
    done: Embedded
    bar: "tqdm[Any]"

    def photos(self, names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Names of photos, and their pixels uint8 [3,H,H]; also leaves out the files that are of neither kind."""
        kind = next(iter(self.system.makes().values()))
        assert isinstance(kind, Picture), "the system makes a face from a voice"
        size = kind.size

        def pixels(content: bytes) -> NDArray[np.uint8]:
            image, _ = steps.read_photo(content, MAX_PHOTO_SIDE)
            return np.ascontiguousarray(square(np.asarray(image), size).transpose(2, 0, 1))

        for name in names:
            if not is_text(name):
                self._leave_out(printable(name), "its name is not text")
            elif PICTURE.fullmatch(name):
                yield from self._read(name, pixels)
            elif not SOUND.fullmatch(name):
                self._leave_out(name, "its name is that of neither a recording nor a photo")

    def recordings(self, names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Names of recordings, and their waveforms [T]."""

        def waveform(content: bytes) -> NDArray[np.float32]:
            shortest = SHORTEST_S
            return decode_voice(content, sample_rate=self.rate, min_seconds=shortest, max_seconds=MAX_SECONDS)

        for name in names:
            if is_text(name) and SOUND.fullmatch(name):
                yield from self._read(name, waveform)

    def _read(self, name: str, decode: Callable[[bytes], T]) -> Iterator[tuple[str, T]]:
        """A file's name and decoded content; nothing if it cannot be read."""
        try:
            found = decode(store.read_bytes(store.join(self.folder, name)))
        except UnusableError as error:
            self._leave_out(name, str(error))
        except V2FError as error:
            if error.retryable:  # the store cannot be reached; the file may be fine
                raise
            self._leave_out(name, str(error))
        else:
            self.bar.update()
            yield name, found

    def _leave_out(self, name: str, why: str) -> None:
        self.done.left_out[name] = why
        self.bar.update()


# ------------------------------------------------------------------------------------------------- the files


class _Table(abc.ABC):
    """A file of rows, which is complete after :meth:`finish`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @abc.abstractmethod
    def add(self, kind: FileKind, files: Sequence[str], columns: Columns, doubts: Sequence[str] | None = None) -> None:
        """Add a row for each file; the first axis of each column is that of ``files``."""

    @abc.abstractmethod
    def finish(self, about: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
        """Write what the rows are and which files have none, and complete the file."""


def _table_for(output: str) -> type[_Table]:
    suffix = Path(output).suffix.lower()
    if suffix == ".npz":
        return _Npz
    if suffix != ".parquet":
        raise V2FError(f"{output}: embeddings are written as NPZ or Parquet; name the output something.npz")
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise V2FError(f"{output}: the package pyarrow is not installed; install it, or write a .npz") from error
    return _Parquet


class _Npz(_Table):
    """Columns are kept in temporary files until :meth:`finish`, when their lengths are known."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._words: dict[str, list[str]] = {f"{kind}_file": [] for kind in ("photo", "recording")}
        self._words["recording_doubt"] = []
        self._raw: dict[str, IO[bytes]] = {}
        self._shape: dict[str, tuple[int, ...]] = {}

    def add(self, kind: FileKind, files: Sequence[str], columns: Columns, doubts: Sequence[str] | None = None) -> None:
        self._words[f"{kind}_file"] += files
        self._words["recording_doubt"] += doubts or []
        for column, values in columns.items():
            name = f"{kind}_{column}"
            if name not in self._raw:
                spool = tempfile.TemporaryFile(dir=Path(self._path).parent)  # noqa: SIM115 - the stack closes it
                self._raw[name] = self._open.enter_context(spool)
                self._shape[name] = values.shape[1:]
            self._raw[name].write(np.ascontiguousarray(values, dtype="<f4").tobytes())

    def finish(self, about: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
        words = {**self._words, "left_out_file": list(left_out), "left_out_why": list(left_out.values())}
        whole = {name: np.array(values, dtype=np.str_) for name, values in words.items()}
        whole["about"] = np.array(json.dumps(about, ensure_ascii=False))
        with zipfile.ZipFile(self._path, "w") as archive:
            for name, array in whole.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, raw in self._raw.items():
                header = {"descr": "<f4", "fortran_order": False}
                shape = (len(self._words[f"{name.split('_')[0]}_file"]), *self._shape[name])
                raw.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header | {"shape": shape})
                    shutil.copyfileobj(raw, member, 1 << 20)


class _Parquet(_Table):
    """A row group for each batch."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._writer: Any = None
        self._w_shape: tuple[int, ...] | None = None

    def add(self, kind: FileKind, files: Sequence[str], columns: Columns, doubts: Sequence[str] | None = None) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._start()
        if "w" in columns:
            self._w_shape = columns["w"].shape[1:]
        values: dict[str, Any] = {"kind": [kind] * len(files), "file": list(files)}
        values["doubt"] = [doubt or None for doubt in doubts or [""] * len(files)]
        for name in ("judge", "referee", "w"):
            found = columns.get(name)
            values[name] = [None] * len(files) if found is None else list(found.reshape(len(files), -1))
        self._writer.write_table(pa.Table.from_pydict(values, schema=self._writer.schema))

    def _start(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        words = [pa.field(name, pa.string()) for name in ("kind", "file", "doubt")]
        numbers = [pa.field(name, pa.list_(pa.float32())) for name in ("judge", "referee", "w")]
        self._writer = self._open.enter_context(pq.ParquetWriter(self._path, pa.schema([*words, *numbers])))

    def finish(self, about: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
        metadata = {"about": dict(about) | {"w_shape": self._w_shape}, "left_out": dict(left_out)}
        self._writer.add_key_value_metadata({k: json.dumps(v, ensure_ascii=False) for k, v in metadata.items()})
