"""Processes told apart: whichever number, container, machine or clock they have."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from v2f.storage import processes
from v2f.storage.processes import age, identity, is_gone, launcher, when_gone


@pytest.fixture
def cat():
    """A process that ends when it is told to."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        yield process


def test_a_process_is_gone_when_it_has_ended_though_nobody_has_asked_after_it(cat):
    known = identity(cat.pid)
    assert known is not None
    assert is_gone(known) is False
    cat.stdin.close()
    os.waitid(os.P_PID, cat.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert (identity(cat.pid), is_gone(known)) == (None, True)
    cat.wait()
    assert (identity(cat.pid), is_gone(known)) == (None, True)


def test_a_number_that_is_given_away_again_is_another_process():
    pid, start, rest = str(identity(os.getpid())).split(":", 2)
    assert is_gone(f"{pid}:{int(start) - 1}:{rest}") is True


def test_nothing_is_said_of_a_process_of_another_machine_or_container():
    pid, start, _ = str(identity(os.getpid())).split(":", 2)
    for known in (f"{pid}:{start}:elsewhere:{processes._namespace()}", f"{pid}:{start}:{processes.boot()}:pid:[1]"):
        assert is_gone(known) is None
        when_gone(known, lambda: pytest.fail("it is not known to be gone"))
    assert is_gone("") is None
    assert is_gone(f"x:{processes.boot()}:{processes._namespace()}") is None


def test_no_clock_that_is_set_makes_another_process_of_one_or_a_younger(monkeypatch):
    own, real = identity(os.getpid()), time.time
    years = age(os.getpid())
    monkeypatch.setattr(time, "time", lambda: real() + 1e6)
    monkeypatch.setattr(psutil, "boot_time", lambda: 1.0)
    assert identity(os.getpid()) == own
    assert years <= age(os.getpid()) < years + 60
    with pytest.raises(psutil.NoSuchProcess):
        age(2**22 + 1)


@pytest.mark.parametrize("waits", [True, False], ids=["pidfd", "a look now and then"])
def test_what_is_to_be_done_is_done_once_the_process_has_ended(cat, monkeypatch, waits):
    if not waits:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.setattr(processes, "_LOOK_S", 0.01)
    known, done = str(identity(cat.pid)), threading.Event()
    when_gone(known, done.set)
    assert not done.is_set()
    cat.stdin.close()
    assert done.wait(30)
    late = threading.Event()
    cat.wait()
    when_gone(known, late.set)
    assert late.is_set()


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["/v/bin/python3", "/v/bin/torchrun", "x.py"], "torchrun"),
        (["python", "-u", "-X", "utf8", "-m", "torch.distributed.run", "x.py"], "torch.distributed.run"),
        (["python", "-m", "accelerate.commands.launch", "x.py"], "accelerate.commands.launch"),
        (["python", "v2f/train.py", "torchrun"], "train.py"),
        (["bash", "-c", "torchrun x.py"], "bash"),
        (["python"], "python"),
        ([], ""),
    ],
)
def test_what_a_command_line_runs(command, program):
    assert processes._program(command) == program


def test_the_launcher_is_the_nearest_that_is_one(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    script = tmp_path / "accelerate-launch"
    script.write_text("import os, subprocess, sys; print(os.getpid(), flush=True); subprocess.run(sys.argv[1:])")
    asks = [sys.executable, "-c", "from v2f.storage.processes import launcher; print(launcher())"]
    command = [sys.executable, str(script), "sh", "-c", '"$@"; exit $?', "sh", *asks]
    pid, found = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split()
    assert found == pid
    assert launcher() is None


def test_a_launcher_of_somebodys_own_is_known_by_torch_and_not_by_who_adopts_its_rank(monkeypatch):
    asks = "from v2f.storage.processes import launcher; print(launcher())"
    starts = (
        f"import os, subprocess, sys, torch; print(os.getpid(), flush=True); {{}}([sys.executable, '-c', {asks!r}])"
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    command = [sys.executable, "-c", starts.format("subprocess.run")]
    pid, found = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split()
    assert found == pid
    asks = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass\n" + asks
    starts = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {asks!r}, str(os.getpid())])"
    done = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, timeout=60)
    assert done.stdout == "None\n", done.stderr
