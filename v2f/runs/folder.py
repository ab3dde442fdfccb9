"""A run's folder, on a disk that its ranks share or under an ``s3://`` prefix.

What is written once goes to its place: ``config.yaml``, ``run.json``, ``checkpoints/``. What grows while a run goes on
(points, quarantine, starts, pictures) is written by rank 0 into a local folder. For a run on a disk that is the run's
folder itself. For one on s3:// it is a scratch folder of this machine: fetched from the prefix when a run starts,
published to it before each checkpoint is committed, so that the prefix holds all that led to the checkpoint.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from v2f.storage import local as files
from v2f.storage import store
from v2f.storage.local import SCRATCH as SCRATCH

# Before the spool: tracking.json, whose mark of how much was delivered must not point beyond it, and what was taken
# out of it.
_GROWS = ("tracking.json", "rolled-back.jsonl", "metrics.jsonl", "quarantine.jsonl", "starts.jsonl")
_PICTURES = "samples"
_OWNER = "written-by"  # at the prefix: the start whose rank 0 published last; here: the starts that went on from there


class RunFolder:
    """``path``: the folder or prefix; ``local``: where what grows lies; ``remote``: whether that is elsewhere."""

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
        """Bring the growing files here, unless those here are what was published last, or more; for rank 0, before it
        writes. ``attempt`` names this start."""
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
        """Put what has changed since the last call to its prefix; V2FError where the store cannot be reached."""
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
            self._attempt = None  # it stays the last until another start publishes


def _text(path: str) -> str:
    """The names of starts in a file; what a damaged one holds is no start that there was."""
    return store.read_bytes(path).decode("utf-8", "replace")
