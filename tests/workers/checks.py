"""Checks for the doctor that fail in various ways; each runs in a process of its own, as the real ones do."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from v2f.doctor.findings import Finding, Setup
from v2f.errors import V2FError

WAITS = "import threading; threading.Event().wait(600)  # of tests/workers/checks.py"


def good(setup: Setup) -> Iterator[Any]:
    print("what a library prints")
    os.write(1, b'{"check": "x", "verdict": "ok", "found": "what a C library prints"}\n')
    yield "working"
    yield Finding("good", "ok", f"found it at {setup.out}")


def hangs(setup: Setup) -> Iterator[Any]:
    yield Finding("hangs", "ok", "the first half")
    subprocess.Popen([sys.executable, "-c", WAITS])  # keeps the pipes open, too
    yield "waiting for s3://key:hush-hush@bucket"
    threading.Event().wait()


def dies(setup: Setup) -> Iterator[Any]:
    yield "loading a library"
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(setup: Setup) -> Iterator[Any]:
    yield "loading a library"
    sys.stderr.write("cannot open shared object file\n")
    os._exit(3)


def refuses(setup: Setup) -> Iterator[Any]:
    yield "asking"
    raise V2FError("http://user:hush-hush@host/x: it is away; start it")


def breaks(setup: Setup) -> Iterator[Any]:
    yield "asking"
    raise KeyError("password=hush-hush")
