"""The page to speak into, served for real from a run, for tests and benchmarks; and voices to speak with."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import soundfile
from mlflow_server import until

REPOSITORY = Path(__file__).resolve().parent.parent


def speak(path: Path, seconds: float, key: int, rate: int = 16000) -> None:
    """Write a clip of one person of the synthetic world."""
    from v2f.world.voices import render_voices

    voice_1V = np.random.default_rng(key).normal(size=(1, 6)).clip(-2, 2)
    soundfile.write(path, render_voices(voice_1V, np.zeros((1, 6)), np.array([key]), seconds, rate)[0], rate)


class Site:
    """A server of one run on a port of its own, with a temporary folder of its own, until the ``with`` block ends."""

    def __init__(self, run: str, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder, self.wanted, self.log = folder / "tmp", folder / "wanted.txt", folder / "log.txt"
        self.folder.mkdir()
        command = [sys.executable, str(REPOSITORY / "tests" / "workers" / "serve.py"), str(self.wanted)]
        own = {"TMPDIR": str(self.folder), "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "serve", run, "--port", "0", *arguments],
                env=os.environ | own | environment,
                stdout=log,
                stderr=log,
            )
        self.url = ""

    def __enter__(self) -> "Site":
        try:
            until(self._answers)
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def uploads(self) -> list[Path]:
        """The files in its temporary folder, of which its folder of uploads is one."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        said = [line for line in self.log.read_text().splitlines() if line.startswith("http://")]
        if not said:
            return False
        self.url = said[0].split()[0]
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(json.load(answer)["status"] == "ok")
        except OSError:
            return False
