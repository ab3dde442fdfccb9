"""The quarantine over all ranks, and its list in the run's folder: ``quarantine.jsonl``, a line per unusable sample."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from v2f.data.quarantine import QuarantinedSample
from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import store
from v2f.storage.records import Record, read_lines
from v2f.tracking.console import say
from v2f.training.job import Job
from v2f.training.stopping import GivenUpError

LIST = "quarantine.jsonl"


def share_quarantine(job: Job) -> None:
    """Tell every rank which samples the others have quarantined; rank 0 lists them.

    Collective. All ranks know the same samples at every checkpoint, and raise the same :class:`GivenUpError` when there
    are more than ``data.max_bad_fraction`` allows.
    """
    loaders, allowed = job.loader.loaders, job.config.data.max_bad_fraction
    gathered = job.engine.gather({stream: loader.quarantine.news() for stream, loader in loaders.items()})
    for stream, loader in loaders.items():
        quarantine, split = loader.quarantine, loader.split
        news = sorted((entry for rank in gathered for entry in rank[stream]), key=lambda entry: entry.slot)
        if not news:
            continue
        quarantine.adopt(news)
        if job.rank_zero is not None:
            _append(job.folder.local, news, stream)
            of = f" of the stream {stream}" if stream else ""
            say(f"step {job.step}: {len(quarantine)} samples{of} are in quarantine; the newest: {news[-1]}")
        if len(quarantine) > allowed * split.samples:
            raise GivenUpError(
                f"{len(quarantine)} of the {split.samples} samples of {split.name} cannot be used, more than "
                f"data.max_bad_fraction={allowed:g} allows; {'; '.join(map(str, news[:3]))}; the whole list is in "
                f"{store.join(job.folder.path, LIST)}; repair the shards (`v2f shards verify` lists all damage), or "
                "raise data.max_bad_fraction"
            )


def _append(folder: Path, entries: list[QuarantinedSample], stream: str) -> None:
    path, of = folder / LIST, {"stream": stream} if stream else {}
    try:
        files.append_line(path, "\n".join(json.dumps(asdict(entry) | of) for entry in entries))
    except V2FError as error:  # the checkpoint holds the samples' numbers, too
        say(f"{error}; training continues")


class _Entry(Record):
    number: int
    stream: str = ""


def roll_back_list(folder: Path, quarantine: Mapping[str, list[int]]) -> None:
    """Keep in the list only the samples that the checkpoint holds, by stream.

    A killed run may have listed later ones, which the resumed run will meet again.
    """
    path = folder / LIST
    if not path.exists():
        return
    known, kept = {(stream, number) for stream, numbers in quarantine.items() for number in numbers}, {}
    for entry in read_lines(str(path), _Entry):
        which = entry.get("stream", ""), entry["number"]
        if which in known:
            kept[which] = json.dumps(entry) + "\n"
    store.write_bytes(str(path), "".join(kept.values()).encode())
