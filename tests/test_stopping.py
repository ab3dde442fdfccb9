"""Wishes, durations, the watchdog, and the exit codes that reach the scheduler through a launcher."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from v2f import stopping
from v2f.cli import main
from v2f.errors import V2FError
from v2f.stopping import HUNG, STARTED, STATUS, STOPPED, Watchdog, Wish, report, reports, seconds_of

# A launcher as torchrun is one: it starts a rank, passes SIGTERM on, and turns every failure into 1.
LAUNCHER = """
import signal, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
signal.signal(signal.SIGTERM, lambda *_: rank.send_signal(signal.SIGTERM))
sys.exit(1 if rank.wait() else 0)
"""
RANK = """
import sys
from v2f import stopping
stopping.report(None)
{body}
"""
WAITS = """
with stopping.Wish(None) as wish:
    print("running", flush=True)
    while not int(wish):
        pass
print(stopping.REASONS[int(wish)], flush=True)
sys.exit(stopping.report(stopping.STOPPED))
"""


def launched(body: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "v2f.cli", "exec", sys.executable, "-c", LAUNCHER, RANK.format(body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("23h", 82800), ("1h30m", 5400), ("90m", 5400), ("3600s", 3600), ("45", 45), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1.5h", "-1h", "23 hours", "1m1h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(V2FError, match=r"is no duration; write 23h"):
        seconds_of(text)


def test_a_wish_is_heard_inside_its_context_only():
    before = signal.getsignal(signal.SIGTERM)
    with Wish(None) as wish:
        assert int(wish) == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert int(wish) == 2
        os.kill(os.getpid(), signal.SIGTERM)
        assert int(wish) == 3
        os.kill(os.getpid(), signal.SIGUSR1)
        assert int(wish) == 3
    assert signal.getsignal(signal.SIGTERM) is before
    with Wish(0.0) as wish:
        assert int(wish) == 1
    with Wish(1e9) as wish:
        assert int(wish) == 0


def test_the_watchdog_writes_all_stacks_and_leaves(tmp_path, capfd):
    left = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    with Watchdog(0.001, str(tmp_path), 3, leave):
        assert left.wait(30)
    assert codes == [HUNG]
    error = capfd.readouterr().err
    assert "rank 3: no step has ended for 0.001 minutes (train.watchdog_minutes)" in error
    assert "test_the_watchdog_writes_all_stacks" in error
    assert "test_the_watchdog_writes_all_stacks" in (tmp_path / "stacks-rank-3.txt").read_text()


def test_the_watchdog_leaves_although_the_disk_hangs_and_keeps_what_nccl_has_recorded(tmp_path, monkeypatch):
    left = threading.Event()
    monkeypatch.setattr(stopping, "_PATIENCE_S", 0.1)
    monkeypatch.setitem(
        sys.modules, "torch._C._distributed_c10d", SimpleNamespace(_dump_nccl_trace=lambda: b"the last collectives")
    )
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", str(tmp_path / "nccl-rank-"))
    monkeypatch.setenv(STATUS, str(tmp_path))
    os.mkfifo(tmp_path / "stacks-rank-3.txt")  # who opens it waits for a reader
    with Watchdog(0.001, str(tmp_path), 3, lambda code: left.set()):
        assert left.wait(30)
    assert [each["code"] for each in reports(str(tmp_path))] == [HUNG]
    assert (tmp_path / "nccl-rank-3").read_bytes() == b"the last collectives"
    (tmp_path / "stacks-rank-3.txt").read_text()  # lets the writer go


def test_a_time_limit_counts_from_the_jobs_start_however_often_its_ranks_are_started(monkeypatch):
    now = time.time()
    monkeypatch.setenv(STARTED, f"{now - 50}")
    assert (int(Wish(60.0)), int(Wish(40.0))) == (0, 1)
    monkeypatch.setenv(STARTED, "yesterday")
    with pytest.raises(V2FError, match=r"V2F_STARTED='yesterday': seconds since 1970 are wanted there; unset it"):
        Wish(60.0)
    monkeypatch.delenv(STARTED)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # without `v2f exec`: since torchrun began, here who runs pytest
    parent = psutil.Process().parent()
    assert parent is not None
    age = time.time() - parent.create_time()
    assert (int(Wish(age + 3600)), int(Wish(age - 1e-3))) == (0, 1)


def test_exec_tells_its_ranks_when_the_job_began_unless_they_know_it(monkeypatch, capfd):
    shows = ["exec", sys.executable, "-c", f"import os; print(os.environ[{STARTED!r}])"]
    monkeypatch.delenv(STARTED, raising=False)
    assert main(shows) == 0
    monkeypatch.setenv(STARTED, "1234.5")
    assert main(shows) == 0
    own, known = capfd.readouterr().out.split()
    assert float(own) == pytest.approx(psutil.Process().create_time(), abs=0.01)
    assert known == "1234.5"


def test_the_watchdog_leaves_who_lives_alone(tmp_path):
    with Watchdog(1.0, str(tmp_path), 0, lambda code: pytest.fail("it left")) as watchdog:
        watchdog.alive()
    with Watchdog(None, str(tmp_path), 0, lambda code: pytest.fail("it left")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_start_counts(tmp_path, monkeypatch):
    monkeypatch.setenv(STATUS, str(tmp_path))
    for rank, start, code in [("0", "0", 78), ("1", "0", None), ("0", "1", STOPPED)]:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        left = report(code)
        assert left == (0 if code == STOPPED else code)
    assert [(each["pid"], each["code"]) for each in reports(str(tmp_path))] == [(os.getpid(), STOPPED)]
    monkeypatch.delenv(STATUS)
    assert report(STOPPED) == STOPPED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_wrapper_reaches_the_ranks_and_its_code_the_scheduler(number):
    process = launched(WAITS)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (out, process.returncode) == ("SIGUSR1\n", STOPPED), error


LINGERS = """
import signal, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # torchrun, too, leaves with 1
rank.wait()
print("lingers", flush=True)
print(sys.stdin.readline(), end="", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_does_not_end_a_launcher_that_waits_for_other_nodes_after_its_ranks_have_saved(number):
    command = [sys.executable, "-m", "v2f.cli", "exec", sys.executable, "-c", LINGERS, RANK.format(body=WAITS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    assert [process.stdout.readline() for _ in range(2)] == ["SIGUSR1\n", "lingers\n"]
    process.send_signal(number)
    out, _ = process.communicate("the others are done\n", timeout=60)
    assert (out, process.returncode) == ("the others are done\n", STOPPED)


def test_ranks_that_have_saved_count_even_where_their_launcher_is_killed():
    process = launched("stopping.report(stopping.STOPPED); import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    _, error = process.communicate(timeout=60)
    assert process.returncode == STOPPED, error


def test_a_signal_before_there_are_ranks_ends_the_launcher_and_nothing_is_lost(tmp_path):
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    waits = f"open({str(ready)!r}, 'w').close(); import signal; signal.pause()"
    process = subprocess.Popen([sys.executable, "-m", "v2f.cli", "exec", sys.executable, "-c", waits])
    ready.read_text()  # returns once the launcher is there
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == STOPPED


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(stopping.report(0))", 0),
        ("sys.exit(stopping.report(75))", 75),
        ("sys.exit(stopping.report(78))", 78),
        ("sys.exit(stopping.report(78, together=True))", 78),  # the launcher sees 0 and starts nobody again
        ("sys.argv[1:] = ['--resume', 'yes']; from v2f.train import main; sys.exit(main())", 78),
        ("sys.exit(stopping.report(70))", 70),
        ("sys.exit(stopping.report(1))", 1),
        ("import os; os.abort()", 1),
    ],
)
def test_the_code_that_a_rank_means_comes_through_the_launcher(body, code):
    process = launched(body)
    process.communicate(timeout=60)
    assert process.returncode == code


def test_signals_to_the_whole_job_do_not_end_the_launcher():
    process = launched(WAITS)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    launcher = psutil.Process(process.pid).children()[0]
    launcher.send_signal(signal.SIGUSR1)
    launcher.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == STOPPED


def test_who_is_told_to_stop_and_cannot_save_is_told_again_after_a_restart():
    """As torch elastic does: the second start of the rank has not heard of the signal to the first."""
    twice = """
import os, subprocess, sys
fails = sys.argv[1].replace("stopping.report(stopping.STOPPED)", "stopping.report(1)")
subprocess.run([sys.executable, "-c", fails])
os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
sys.exit(1 if subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode else 0)
"""
    command = [sys.executable, "-m", "v2f.cli", "exec", sys.executable, "-c", twice, RANK.format(body=WAITS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (out.splitlines(), process.returncode) == (["SIGUSR1", "running", "SIGUSR1"], STOPPED)


def test_the_signal_for_a_profile_reaches_the_ranks_and_ends_nobody():
    profiled = """
heard = []
signal.signal(signal.SIGUSR2, lambda *_: heard.append(1))
stopping.report(None)
print("running", flush=True)
while not heard:
    pass
print("profiled", flush=True)
sys.exit(stopping.report(0))
"""
    process = launched("import signal" + profiled)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGUSR2)
    out, error = process.communicate(timeout=60)
    assert (out, process.returncode) == ("profiled\n", 0), error


def test_exec_lets_a_new_agent_join_in_a_lost_ones_place_unless_told_otherwise(monkeypatch, capfd):
    name = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    shows = ["exec", sys.executable, "-c", f"import os; print(os.environ[{name!r}])"]
    monkeypatch.delenv(name, raising=False)
    assert main(shows) == 0
    monkeypatch.setenv(name, "0")
    assert main(shows) == 0
    assert capfd.readouterr().out.split() == ["1", "0"]


def test_exec_names_what_it_cannot_start(capsys):
    assert main(["exec", "no-such-launcher"]) == 1
    assert "v2f exec: no-such-launcher cannot be started (No such file or directory)" in capsys.readouterr().err
    assert main(["exec"]) == 1
    assert "which launcher?" in capsys.readouterr().err


def test_training_that_a_mistake_ends_leaves_with_the_code_that_says_so(tmp_path):
    script = Path(__file__).resolve().parent.parent / "v2f" / "train.py"
    command = [sys.executable, str(script), "--config", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78
    assert "none.yaml: cannot read this configuration" in done.stderr
