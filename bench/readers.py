"""What bench/loader.py runs, a process a measurement: one reader over the same samples, with the same decode functions.

    python bench/readers.py TASK SPECIFICATION    (a name below, and JSON; prints one line of JSON)

Runs in any environment that has numpy, soundfile, Pillow, psutil, and the library in question, with the repository on
PYTHONPATH; of v2f it imports what decode workers import, and the rest for its own loader only.
"""

import importlib.metadata
import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import psutil

from v2f.data.sample import Sample
from v2f.data.transforms import Photo, Waveform

Spec = dict[str, Any]


def decoded(spec: Spec, sample: Sample) -> dict[str, np.ndarray]:
    """The decode functions, the same for all."""
    wav_T = Waveform(spec["seconds"])(sample, None)
    return {"wav": wav_T, "image": Photo(spec["size"])(sample, None)}


# ------------------------------------------------------------------------------------------------ decoding alone


def alone(spec: Spec) -> Spec:
    """Two processes decode what they hold in memory, and throw it away: samples and CPU seconds of both."""
    raws = [
        (key, b"".join(_header_and_content(member, content) for member, content in members))
        for key, members in _stored(spec["shards"])
    ]
    count = (spec["skip"] + spec["batches"]) * spec["batch"]
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(spec["workers"]), context.SimpleQueue()

    def run(which: int) -> None:
        mine = [raws[i % len(raws)] for i in range(which, count, spec["workers"])]
        skip = spec["skip"] * spec["batch"] // spec["workers"]
        start.wait()
        for i, (key, raw) in enumerate(mine):
            if i == skip:
                begun, cpu = time.perf_counter(), time.process_time()
            decoded(spec, Sample.from_tar(key, raw))
        seconds = time.perf_counter() - begun
        results.put(((len(mine) - skip) / seconds, (time.process_time() - cpu) / (len(mine) - skip)))

    processes = [context.Process(target=run, args=(which,)) for which in range(spec["workers"])]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {"rate": sum(rate for rate, _ in found), "cpu_us": 1e6 * float(np.mean([cpu for _, cpu in found]))}


def _header_and_content(member: tarfile.TarInfo, content: bytes) -> bytes:
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _stored(shards: list[str]) -> Iterator[tuple[str, list[tuple[tarfile.TarInfo, bytes]]]]:
    """Every sample's key and members."""
    for path in shards:
        with tarfile.open(path, "r:") as tar:
            key, members = "", []
            for member in tar:
                name = member.name.partition(".")[0]
                if name != key and members:
                    yield key, members
                    members = []
                key = name
                file = tar.extractfile(member)
                assert file is not None
                members.append((member, file.read()))
            yield key, members


# ------------------------------------------------------------------------------------------------ readers


def v2f(spec: Spec) -> Iterator[Any]:
    from v2f.data.loader import Loader
    from v2f.data.manifest import open_dataset
    from v2f.data.order import Order

    split = open_dataset(spec["root"]).split("train")
    order = Order.for_batches(split.shard_sizes, seed=0, batch=spec["batch"])
    transforms = {"wav": Waveform(spec["seconds"]), "image": Photo(spec["size"])}
    start = spec.get("start_slot", 0)
    with Loader(
        split, order, transforms, batch=spec["batch"], seed=0, workers=spec["workers"], start_slot=start
    ) as loader:
        yield from loader


def webdataset(spec: Spec) -> Iterator[Any]:
    import webdataset as wds

    stream = wds.WebDataset(spec["urls"], shardshuffle=100, seed=0, empty_check=False).repeat().shuffle(256)
    stream = stream.map(_Members(spec)).batched(spec["batch"], partial=False, collation_fn=_collate())
    yield from wds.WebLoader(stream, batch_size=None, num_workers=spec["workers"])


class _Members:
    """A webdataset sample as arrays."""

    def __init__(self, spec: Spec):
        self._spec = spec

    def __call__(self, found: dict[str, Any]) -> dict[str, np.ndarray]:
        return decoded(self._spec, Sample(found["__key__"], {n: found[n] for n in ("flac", "jpg", "json")}))


def streaming(spec: Spec) -> Iterator[Any]:
    import streaming as mosaic
    from torch.utils.data import DataLoader

    class Dataset(mosaic.StreamingDataset):
        def __getitem__(self, at: int) -> dict[str, np.ndarray]:
            found = super().__getitem__(at)
            return decoded(spec, Sample(found["key"], {n: found[n] for n in ("flac", "jpg", "json")}))

    mosaic.base.util.clean_stale_shared_memory()
    remote = spec.get("streaming_remote")
    local = _fresh(spec["cache"]) if remote else spec["streaming"]
    data = Dataset(remote=remote, local=local, shuffle=True, batch_size=spec["batch"])
    yield from DataLoader(data, batch_size=spec["batch"], num_workers=spec["workers"], drop_last=True)


def litdata(spec: Spec) -> Iterator[Any]:
    import litdata as lightning

    class Dataset(lightning.StreamingDataset):
        def __getitem__(self, at: Any) -> dict[str, np.ndarray]:
            found = super().__getitem__(at)
            return decoded(spec, Sample(found["key"], {n: found[n] for n in ("flac", "jpg", "json")}))

    remote = spec.get("litdata_remote")
    kinds: Spec = {}
    if remote:
        # no setting of its own reaches this: an endpoint without TLS, as a store on loopback is, is refused otherwise
        lightning.streaming.downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
        keys = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        options = {name: os.environ[variable] for name, variable in keys.items()}
        kinds = {
            "storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], **options},
            "cache_dir": _fresh(spec["cache"]),
        }
    data = Dataset(remote or spec["litdata"], shuffle=True, drop_last=True, **kinds)
    yield from lightning.StreamingDataLoader(data, batch_size=spec["batch"], num_workers=spec["workers"])


def _collate() -> Any:
    from torch.utils.data import default_collate

    return default_collate


def _fresh(folder: str) -> str:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    return folder


# ------------------------------------------------------------------------------------------------ their formats


def write_streaming(spec: Spec) -> Spec:
    from streaming import MDSWriter

    columns = {"key": "str", "flac": "bytes", "jpg": "bytes", "json": "bytes"}
    with MDSWriter(out=spec["streaming"], columns=columns, size_limit=1 << 25) as out:
        for row in _rows(spec["shards"]):
            out.write(row)
    return {}


def write_litdata(spec: Spec) -> Spec:
    import litdata as lightning

    lightning.optimize(
        fn=_row_of, inputs=spec["shards"], output_dir=spec["litdata"], chunk_bytes="32MB", num_workers=1, verbose=False
    )
    return {}


def _row_of(shard: str) -> Iterator[Spec]:
    yield from _rows([shard])


def _rows(shards: list[str]) -> Iterator[Spec]:
    for key, members in _stored(shards):
        yield {"key": key, **{member.name.partition(".")[2]: content for member, content in members}}


# ------------------------------------------------------------------------------------------------ measurements


def rate(batches: Iterable[Any], spec: Spec) -> Spec:
    """Samples a second and CPU time a sample, of all processes, while batches are made and taken at the same rate:
    neither what was made before the first one was asked for counts, nor what is left when an epoch ends."""
    stream = iter(batches)
    for _ in range(spec["skip"]):
        _check(next(stream), spec)
    begun, cpu = time.perf_counter(), _cpu()
    for _ in range(spec["batches"]):
        _check(next(stream), spec)
    seconds, used = time.perf_counter() - begun, _cpu() - cpu
    samples = spec["batches"] * spec["batch"]
    return {"rate": samples / seconds, "cpu_us": 1e6 * used / samples}


def _check(batch: Any, spec: Spec) -> None:
    shapes = {name: tuple(batch[name].shape) for name in ("wav", "image")}
    frames = round(16000 * spec["seconds"])
    wanted = {"wav": (spec["batch"], frames), "image": (spec["batch"], 3, spec["size"], spec["size"])}
    assert shapes == wanted, shapes


def _cpu() -> float:
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def first(spec: Spec) -> Spec:
    """Seconds from asking for the first batch to having it, from each of ``starts``, in turns."""
    found: dict[str, list[float]] = {str(start): [] for start in spec["starts"]}
    for turn in range(spec["turns"] + 1):
        for start in spec["starts"]:
            stream = v2f({**spec, "start_slot": start})
            begun = time.perf_counter()
            next(stream)
            if turn:  # the first turn imports
                found[str(start)].append(time.perf_counter() - begun)
            stream.close()  # type: ignore[attr-defined]
    return {"seconds": found}


def memory(spec: Spec) -> Spec:
    """Memory over ``samples`` samples, in MB: of the rank's own, of each worker's own, and what they share (trays)."""
    stream, rank = v2f(spec), os.getpid()
    batches = spec["samples"] // spec["batch"]
    points = []
    for i in range(batches + 1):
        _check(next(stream), spec)
        if i % max(1, batches // 200) == 0:
            workers = [child.pid for child in psutil.Process().children()]
            own = [_resident(pid, "RssAnon") for pid in (rank, *workers)]
            points.append([i * spec["batch"], *own, _resident(rank, "RssShmem")])
    return {"points": points}


def _resident(pid: int, kind: str) -> float:
    with open(f"/proc/{pid}/status") as lines:
        (line,) = (line for line in lines if line.startswith(kind + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    name, spec = sys.argv[1], json.loads(sys.argv[2])
    if name in ("alone", "write_streaming", "write_litdata", "first", "memory"):
        found = globals()[name](spec)
    else:
        import torch

        torch.set_num_threads(1)
        found = rate(
            {"v2f": v2f, "webdataset": webdataset, "streaming": streaming, "litdata": litdata}[name](spec), spec
        )
        packages = {"streaming": "mosaicml-streaming"}
        found["version"] = importlib.metadata.version(packages.get(name, name))
    print("\n" + json.dumps(found), flush=True)
    os._exit(0)  # a library's threads may not end by themselves


if __name__ == "__main__":
    main()
