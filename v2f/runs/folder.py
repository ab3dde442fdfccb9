"""A run's folder, on a disk that its ranks share or under an ``s3://`` prefix.

Files that are written once go straight to the folder or prefix: ``config.yaml``, ``run.json``, ``checkpoints/``. Rank 0
writes the files that grow (metrics, quarantine, starts, pictures) into a local folder. For a run on a disk, this is the
run's folder. For a run on s3://, it is a scratch folder of this machine: RunFolder fetches the files from the prefix
when a run starts and publishes them before each checkpoint is committed, so that the prefix has the whole history of
the checkpoint.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from v2f.storage import local as files
from v2f.storage import store
from v2f.storage.local import SCRATCH as SCRATCH

# In the order of publishing: the mark in tracking.json of what was delivered must not point beyond the published
# metrics.jsonl, and rolled-back.jsonl holds the lines that were taken out of it.
_GROWS = ("tracking.json", "rolled-back.jsonl", "metrics.jsonl", "quarantine.jsonl", "starts.jsonl")
_PICTURES = "samples"
_OWNER = "written-by"  # at the prefix: the start that published last; here: the starts that continued from it


class RunFolder:
    """``path``: the folder or prefix; ``local``: the folder of the growing files; ``remote``: whether these differ."""

    def __init__(self, path: str) -> None:
        self.path = path
        own = store.local_path(path)
        self.remote = own is None
        if own is None:
            own = os.path.join(files.scratch(), hashlib.sha256(path.encode()).hexdigest()[:16])
        self.local = Path(own)
        self._published: dict[str, tuple[int, int]] = {}
        self._attempt: str | None = None

    def fetch(self, attempt: str) -> None:
        """Fetch the growing files, unless the local ones contain what was published last. Rank 0 calls this before it
        writes; ``attempt`` names this start."""
        with files.explained(self.local):
            self.local.mkdir(parents=True, exist_ok=True)
        if not self.remote:
            return
        self._attempt = attempt
        owner, mine = store.join(self.path, _OWNER), self.local / _OWNER
        last = _text(owner) if store.exists(owner) else None
        here = _text(str(mine)).splitlines() if mine.exists() else []
        if last not in here:
            here = []
            for name in _GROWS:
                with contextlib.suppress(FileNotFoundError):
                    (self.local / name).unlink()
                there = store.join(self.path, name)
                if last is not None and store.exists(there):
                    store.write_bytes(str(self.local / name), store.read_bytes(there))
        store.write_bytes(str(mine), "".join(f"{line}\n" for line in [*here, attempt]).encode())

    def publish(self) -> None:
        """Copy what has changed since the last call to the prefix; V2FError if the store cannot be reached."""
        if not self.remote:
            return
        files = [*_GROWS, *(f"{_PICTURES}/{path.name}" for path in sorted((self.local / _PICTURES).glob("*.png")))]
        for name in files:
            try:
                facts = os.stat(self.local / name)
            except FileNotFoundError:
                continue
            now = facts.st_size, facts.st_mtime_ns
            if self._published.get(name) != now:
                store.write_bytes(store.join(self.path, name), store.read_bytes(str(self.local / name)))
                self._published[name] = now
        if self._attempt is not None:
            store.write_bytes(store.join(self.path, _OWNER), self._attempt.encode())
            self._attempt = None  # once: only another start's publishing changes it


def _text(path: str) -> str:
    """The names of starts in a file; damaged names match no start."""
    return store.read_bytes(path).decode("utf-8", "replace")
