"""Stop requests, durations, the watchdog, and the exit codes that reach the scheduler through a launcher."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from v2f.cli import main
from v2f.errors import V2FError
from v2f.storage import processes
from v2f.training import stopping
from v2f.training.stopping import (
    HUNG,
    STARTED,
    STATUS,
    STOPPED,
    UPTIME,
    StopRequest,
    Watchdog,
    report,
    reports,
    seconds_of,
)

REPOSITORY = Path(__file__).resolve().parents[2]

# A launcher as torchrun is one: it starts a rank, passes SIGTERM on, and turns every failure into 1.
LAUNCHER = """
import signal, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
signal.signal(signal.SIGTERM, lambda *_: rank.send_signal(signal.SIGTERM))
sys.exit(1 if rank.wait() else 0)
"""
RANK = """
import sys
from v2f.training import stopping
stopping.report(None)
{body}
"""
WAITS = """
with stopping.StopRequest(None) as request:
    print("running", flush=True)
    while not int(request):
        pass
print(stopping.REASONS[int(request)], flush=True)
sys.exit(stopping.report(stopping.STOPPED))
"""


def launched(body: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "v2f.cli", "exec", sys.executable, "-c", LAUNCHER, RANK.format(body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("23h", 82800), ("1h30m", 5400), ("90m", 5400), ("3600s", 3600), ("45", 45), ("1d", 86400), ("1d2h3m4s", 93784)],
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1.5h", "-1h", "23 hours", "1m1h", "1h30", "1d12", "5m30", "0", "0h", "٣h"])
def test_what_is_not_a_duration_is_refused(text):
    with pytest.raises(V2FError, match=r"is not a duration; write 23h, 1h30m, .* each with its unit"):
        seconds_of(text)


def test_a_stop_request_is_heard_inside_its_context_only():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(None) as request:
        assert int(request) == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert int(request) == 2
        os.kill(os.getpid(), signal.SIGTERM)
        assert int(request) == 3
        os.kill(os.getpid(), signal.SIGUSR1)
        assert int(request) == 3
    assert signal.getsignal(signal.SIGTERM) is before
    with StopRequest(0.0) as request:
        assert int(request) == 1
    with StopRequest(1e9) as request:
        assert int(request) == 0


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
    monkeypatch.delenv(UPTIME, raising=False)
    monkeypatch.setenv(STARTED, f"{now - 50}")
    assert (int(StopRequest(60.0)), int(StopRequest(40.0))) == (0, 1)
    monkeypatch.setenv(STARTED, "yesterday")
    with pytest.raises(
        V2FError, match=r"V2F_STARTED='yesterday': not a number; it must be seconds since 1970: unset it"
    ):
        StopRequest(60.0)
    monkeypatch.delenv(STARTED)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # without `v2f exec`: since torchrun began, here who runs pytest
    monkeypatch.setattr(processes, "launcher", os.getppid)
    age = processes.age(os.getppid())
    assert (int(StopRequest(age + 3600)), int(StopRequest(age - 1e-3))) == (0, 1)


def test_a_wall_clock_that_jumps_makes_no_time_limit_shorter_or_longer(monkeypatch):
    monkeypatch.setenv(STARTED, f"{time.time() - 50}")
    monkeypatch.setenv(UPTIME, f"{processes.boot()}:{processes.uptime() - 50}")
    running, over = StopRequest(60.0), StopRequest(40.0)
    real = time.time
    for jump in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert (int(running), int(over)) == (0, 1)
        assert (int(StopRequest(60.0)), int(StopRequest(40.0))) == (0, 1)  # as a rank that is started after the jump
    monkeypatch.setattr(time, "time", real)
    monkeypatch.setenv(UPTIME, "another machine:7")
    assert (int(StopRequest(60.0)), int(StopRequest(40.0))) == (0, 1)
    monkeypatch.setenv(UPTIME, f"{processes.boot()}:noon")
    with pytest.raises(V2FError, match=rf"{UPTIME}='noon': not a number; it must be seconds since the machine's start"):
        StopRequest(60.0)


def test_exec_tells_its_ranks_when_the_job_began_unless_they_know_it(monkeypatch, capfd):
    shows = ["exec", sys.executable, "-c", f"import os; print(os.environ[{STARTED!r}], os.environ.get({UPTIME!r}))"]
    monkeypatch.delenv(STARTED, raising=False)
    monkeypatch.delenv(UPTIME, raising=False)
    assert main(shows) == 0
    monkeypatch.setenv(STARTED, "1234.5")
    assert main(shows) == 0
    own, uptime, known, unknown = capfd.readouterr().out.split()
    assert float(own) == pytest.approx(psutil.Process().create_time(), abs=0.01)
    boot, _, began = uptime.rpartition(":")
    assert (boot, float(began)) == (
        processes.boot(),
        pytest.approx(processes.uptime() - processes.age(os.getpid()), abs=0.1),
    )
    assert (known, unknown) == ("1234.5", "None")


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
    own = processes.identity(os.getpid())
    assert [(each["process"], each["code"]) for each in reports(str(tmp_path))] == [(own, STOPPED)]
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
        ("sys.argv[1:] = ['--resume', 'yes']; from v2f.training.command import main; sys.exit(main())", 78),
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


# ------------------------------------------------------------------------------------- nobody outlives who started it

# Tells its process and stays until it is ended: by whoever started it, or by an open end of the pipe that is closed.
STAYS = """
import os, sys
from v2f.storage import processes
from v2f.training import stopping
stopping.die_with_launcher()
stopping.report(None)
print(processes.identity(os.getpid()), flush=True)
"""


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A folder first on PATH, with a `torchrun` and an `accelerate` that start one rank each, behind a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    rank = f"{STAYS}{WAITS.replace('import sys', '')}"
    (folder / "rank.py").write_text(rank.replace('print("running", flush=True)', 'print("hears", flush=True)'))
    for name, variables in (("torchrun", {"TORCHELASTIC_RUN_ID": "x"}), ("accelerate", {})):
        (folder / name).write_text(
            f"#!{sys.executable}\nimport os, subprocess, sys\n"
            f"rank = [sys.executable, {str(folder / 'rank.py')!r}]\n"
            "rank = ['sh', '-c', '\"$@\"; exit $?', 'sh', *rank] if '--shell' in sys.argv else rank\n"
            f"sys.exit(1 if subprocess.Popen(rank, env=os.environ | {variables!r}).wait() else 0)\n"
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("V2F_ST", "V2F_EXEC", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    return folder


def begun(command: list[str], **options) -> tuple[subprocess.Popen, str]:
    """A started command whose rank hears signals, and the rank's process."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    known = process.stdout.readline().strip()
    assert known, process.communicate()[1]
    assert process.stdout.readline() == "hears\n"
    return process, known


def ended(known: str) -> bool:
    """A process closes its pipes a moment before it has ended."""
    gone = threading.Event()
    processes.when_gone(known, gone.set)
    return gone.wait(30)


EXEC = [sys.executable, "-m", "v2f.cli", "exec"]


@pytest.mark.parametrize(
    "launcher",
    [
        ["torchrun"],
        ["torchrun", "--shell"],
        ["accelerate"],
        ["bash", "-c", "torchrun --shell; exit $?"],
        ["sh", "-c", "accelerate & wait"],
        [sys.executable, "rank.py"],
    ],
    ids=" ".join,
)
def test_a_rank_ends_with_the_exec_that_is_killed_whatever_stands_between(programs, launcher):
    process, known = begun([*EXEC, *launcher], cwd=programs)
    process.kill()
    out, _ = process.communicate(timeout=60)  # the pipe is closed when the last of them has ended
    assert out == "", "a rank that is killed saves nothing"
    assert ended(known)


@pytest.mark.parametrize("options", [[], ["--shell"]], ids=["its child", "behind a shell"])
def test_a_rank_ends_with_the_torchrun_that_is_killed(programs, options):
    process, known = begun(["torchrun", *options])
    process.kill()
    assert process.communicate(timeout=60)[0] == ""
    assert ended(known)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("options", [[], ["--shell"]], ids=["its child", "behind a shell"])
def test_a_rank_whose_accelerate_launch_is_ended_saves_and_leaves(programs, number, options):
    """It passes no signal on, and dies at once."""
    process, known = begun(["accelerate", *options])
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "SIGTERM\n"
    assert ended(known)


def test_a_rank_whose_launcher_is_killed_under_exec_is_not_left_behind(programs):
    process, known = begun([*EXEC, "sh", "-c", "echo $$ >pid; torchrun & wait"], cwd=programs)
    os.kill(int((programs / "pid").read_text()), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert ended(known)


def test_a_training_that_was_started_by_hand_outlives_its_shell(programs):
    """`nohup python v2f/train.py ... &`: nothing watches the shell, nor who has the number of one that is gone."""
    body = STAYS + "import threading; print([thread.name for thread in threading.enumerate()], flush=True)"
    (programs / "rank.py").write_text(body + "\nwhile os.getppid() == int(sys.argv[1]): pass\nprint('stays')")
    shell = ["sh", "-c", 'exec 0<&-; "$@" $$ & read -r _ <fifo', "sh", sys.executable, "rank.py"]
    os.mkfifo(programs / "fifo")
    process = subprocess.Popen(shell, cwd=programs, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    assert process.stdout.readline() == "['MainThread']\n"
    (programs / "fifo").write_text("leave\n")
    assert process.stdout.read() == "stays\n"
    process.wait(60)


def test_a_rank_that_is_started_again_after_its_exec_was_killed_ends_at_once(programs, monkeypatch):
    gone = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    known = processes.identity(gone.pid)
    gone.communicate()
    monkeypatch.setenv("V2F_EXEC", str(known))
    done = subprocess.run([sys.executable, programs / "rank.py"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert "v2f: rank 0 exits, because its launcher or v2f exec is gone" in done.stderr


def test_a_rank_whose_launcher_was_killed_while_it_was_being_started_ends_at_once(programs):
    """What has adopted it stays, and would be watched for ever."""
    (programs / "rank.py").write_text(f"import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass\n{STAYS}")
    (programs / "torchrun").write_text('TORCHELASTIC_RUN_ID=x "$@" $$ & exit 0\n')
    command = ["sh", "torchrun", sys.executable, "rank.py"]
    done = subprocess.run(command, cwd=programs, capture_output=True, text=True, timeout=60)
    assert done.stdout == "", done.stderr
    assert "v2f: rank 0 exits, because its launcher or v2f exec is gone" in done.stderr


def test_exec_saves_and_leaves_when_the_script_that_started_it_is_killed(programs):
    script = '. launch/again.sh; again "$@" || exit $?'
    command = ["sh", "-c", script, "sh", "setsid", *EXEC, "torchrun"]
    process, known = begun(command, cwd=REPOSITORY)
    (child,) = psutil.Process(process.pid).children()
    wrapper = str(processes.identity(child.pid))
    process.kill()
    out, error = process.communicate(timeout=60)
    assert out == "SIGUSR1\n", error
    assert "the script that started it is gone: the ranks will save and exit" in error
    assert ended(known)
    assert ended(wrapper)


# ---------------------------------------------------------------------------------------------------- at a terminal


def test_ctrl_c_at_exec_saves_and_does_not_reach_the_launcher(programs):
    process, known = begun([*EXEC, "torchrun"], start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all in the foreground
    out, error = process.communicate(timeout=60)
    assert (out, process.returncode) == ("SIGUSR1\n", STOPPED), error
    assert "Ctrl-C: the ranks will save and exit; press it again to end them at once" in error
    assert ended(known)


def test_a_second_ctrl_c_at_exec_ends_all_at_once(programs):
    rank = (programs / "rank.py").read_text()
    (programs / "rank.py").write_text(
        rank.replace("while not int(request):\n        pass", "while True:\n        pass")
    )
    process, known = begun([*EXEC, "sh", "-c", "torchrun; exit $?"], start_new_session=True)
    assert process.stderr is not None
    os.killpg(process.pid, signal.SIGINT)
    assert "press it again to end them at once" in process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert ended(known)


def test_a_second_ctrl_c_counts_while_the_first_is_being_told(monkeypatch):
    monkeypatch.setattr(stopping, "tell", lambda text: os.kill(os.getpid(), signal.SIGINT))
    with StopRequest(None), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_at_a_training_saves_and_a_second_one_interrupts(capfd):
    before = signal.getsignal(signal.SIGINT)
    with StopRequest(None) as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.REASONS[int(request)] == "Ctrl-C"
        assert "will save after this step and exit; press it again to exit at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_nohup_has_ignored_stays_ignored():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        with StopRequest(None) as request:
            for number in before:
                os.kill(os.getpid(), number)
            assert int(request) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


TALKS = """
import sys
stopping.outlive_the_terminal()
with stopping.StopRequest(None) as request:
    print("hears", flush=True)
    while not int(request):
        pass
for stream in (sys.stdout, sys.stderr):
    print("saved", file=stream, flush=True)
    print("not flushed " * 10000, file=stream)
sys.exit(stopping.report(stopping.STOPPED))
"""


@pytest.mark.parametrize("before", [EXEC, []], ids=["exec", "by itself"])
def test_a_terminal_that_is_closed_ends_the_run_saved_with_the_code_that_says_so(tmp_path, before):
    assert (
        at_a_terminal([*before, sys.executable, "-c", RANK.format(body=TALKS)], os.environ | {"TMPDIR": tmp_path}) == 75
    )


def at_a_terminal(command: list[str], environment: dict) -> int:
    """What a command leaves with whose terminal is closed as soon as it says that it hears."""
    master, slave = pty.openpty()
    leads = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", leads, *command],
        cwd=REPOSITORY,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    said = b""
    while b"hears" not in said:
        said += os.read(master, 1000)
    os.close(master)
    return process.wait(60)


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_pipe_that_broke_changes_no_code(gone):
    body = RANK.format(body=TALKS.replace("while not int(request):", "while False:"))
    process = subprocess.Popen([*EXEC, sys.executable, "-c", body], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stream = getattr(process, gone)
    stream.close()
    setattr(process, gone, None)
    process.communicate(timeout=60)
    assert process.returncode == STOPPED


def test_the_signal_for_a_profile_ends_no_training_that_has_only_begun():
    """Sent by its first import; its imports take seconds."""
    script = REPOSITORY / "v2f" / "train.py"
    begins = f"""
import os, runpy, signal, sys
class Signals:
    def find_spec(self, name, path=None, target=None):
        if name in ("argparse", "v2f.training.stopping"):
            os.kill(os.getpid(), signal.SIGUSR2)
            print(name)
sys.meta_path.insert(0, Signals())
sys.argv = [{str(script)!r}, "--config", "recipe.yaml", "--max-time", "tomorrow"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", begins], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (78, ["argparse", "v2f.training.stopping"]), done.stderr


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
    assert (
        "v2f exec: no-such-launcher cannot be started (No such file or directory); check that it is installed"
        in capsys.readouterr().err
    )
    assert main(["exec"]) == 1
    assert "no launcher given; for example" in capsys.readouterr().err


def test_training_that_a_mistake_ends_leaves_with_the_code_that_says_so(tmp_path):
    script = Path(__file__).resolve().parents[2] / "v2f" / "train.py"
    command = [sys.executable, str(script), "--config", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78
    assert "none.yaml: cannot read this configuration" in done.stderr
