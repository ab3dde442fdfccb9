"""launch/local, launch/slurm: trained, stopped, gone on with and packed, by hand and by a real Slurm of two nodes.

Where only the way of signals and exit codes is looked at, a script of the name ``v2f`` stands first on PATH; it notes
each start, and leaves as it is told.
"""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow_server import until
from slurm_cluster import NoSlurmError, Slurm, serving

from v2f.data.manifest import open_dataset
from v2f.prepare.verify import verify
from v2f.runs import checkpoint
from v2f.training.slot_log import read_slots

REPOSITORY = Path(__file__).resolve().parent.parent
LOCAL, NODE = str(REPOSITORY / "launch/local"), str(REPOSITORY / "launch/slurm/node")
TRAIN, PACK = "launch/slurm/train.sbatch", "launch/slurm/pack.sbatch"

# Notes its start, a directory each so that two nodes can write at once, and where it is told `waits`, a signal's name.
FAKE = """\
#!/bin/sh
start=$(mktemp -d "$NOTES/start-XXXXXX")
echo "$*" >"$start/arguments"
env >"$start/environment"
for name in USR1 TERM; do trap "echo $name >>'$start/heard'; code=75" $name; done
code=
touch "$start/ready"
case $LEAVES in waits) while [ -z "$code" ]; do sleep 0.1; done ;; *) eval "code=\\"$LEAVES\\"" ;; esac
exit "$code"
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch) -> None:
    """That of somebody who has activated the environment of v2f, and nothing else that the scripts read."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "V2F_", "OMP_", "ACCELERATE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("V2F_PAUSE", "0")


@pytest.fixture
def notes(environment, tmp_path, monkeypatch) -> Path:
    """The folder in which the script in v2f's place notes its starts; it is first on PATH."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    notes.mkdir()
    (programs / "v2f").write_text(FAKE)
    (programs / "v2f").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setenv("HOME", str(tmp_path))
    return notes


def starts(notes: Path) -> list[Path]:
    return sorted(path.parent for path in notes.glob("*/ready"))


def heard(start: Path) -> set[str]:
    """The signals that a start has heard."""
    return set((start / "heard").read_text().split())


def recipe(values: dict[str, Any], folder: Path, steps: int) -> str:
    """A recipe's file. So that no machine is too fast or too slow for a test, a start that will be stopped has more
    steps than it can do, and the one after it a few more than were done."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | {"train": values["train"] | {"steps": steps}}))
    return str(path)


ENDLESS = 1_000_000


@pytest.fixture
def endless(run_values) -> dict[str, Any]:
    """Values of the lightest system's run, in which only a request to stop, or the end, saves."""
    rare = {"checkpoint_every": ENDLESS, "validate_every": ENDLESS, "log_every": 50}
    return run_values("face_gan", **rare, sample_log=True)


def saved_step(out: str) -> int:
    return checkpoint.step_of(checkpoint.latest(f"{out}/checkpoints"))


def steps_logged(out: str) -> int:
    logs = sorted(Path(out, "slots").glob("*-rank-00000.jsonl"))
    return logs[-1].read_bytes().count(b"\n") if logs else 0


def assert_every_slot_once(out: str, steps: int, batch: int = 8) -> None:
    found = [(step, slot) for step, slot, _ in read_slots(out)]
    assert found == [(slot // batch, slot) for slot in range(steps * batch)]


def told_starts(out: str) -> list[tuple[int, int]]:
    """Step and world size of each start."""
    lines = map(json.loads, Path(out, "starts.jsonl").read_text().splitlines())
    return [(line["step"], line["world_size"]) for line in lines]


# --------------------------------------------------------------------------------------------- without a Slurm


@pytest.mark.parametrize("script", ["launch/again.sh", "launch/local", "launch/slurm/node"])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_each_shell_reads_the_scripts(script, shell):
    subprocess.run([shell, "-n", script], cwd=REPOSITORY, check=True)


def hear_all() -> None:
    """In a child: a shell cannot trap what was ignored when it began, as under nohup or in a script's background."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def again(leaves: str, **variables: str) -> subprocess.Popen[str]:
    script = ". launch/again.sh; code=0; again v2f || code=$?; exit $code"
    environment = os.environ | {"LEAVES": leaves} | variables
    return subprocess.Popen(
        ["sh", "-c", script],
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_all,
    )


@pytest.mark.parametrize(
    ("leaves", "code", "times"),
    [
        ("0", 0, 1),
        ("75", 75, 1),
        ("78", 78, 1),
        ("1", 1, 4),
        ("70", 70, 4),
        ("$(ls $NOTES | wc -l | sed s/2/0/)", 0, 2),
    ],
)
def test_what_broke_or_hung_is_started_again_a_few_times_and_nothing_else(notes, leaves, code, times):
    process = again(leaves)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, len(starts(notes))) == (code, times), said
    assert said.count("restarting in 0 s") == times - 1


def test_every_start_is_told_when_the_first_began(notes, monkeypatch):
    clock = notes.parent / "clock"
    clock.mkdir()
    (clock / "date").write_text('#!/bin/sh\necho >> "$0.asked"; wc -l < "$0.asked"\n')
    (clock / "date").chmod(0o755)
    monkeypatch.setenv("PATH", f"{clock}:{os.environ['PATH']}")
    for known, told in (({}, "1"), ({"V2F_STARTED": "1234"}, "1234")):
        seen = clock / f"seen-{told}"
        again(f"$(echo $V2F_STARTED >> {seen}; echo 1)", **known).communicate(timeout=60)
        assert seen.read_text().split() == [told] * 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_whoever_ends_the_script_ends_the_run_and_it_saves(notes, number):
    process = again("waits")
    until(lambda: starts(notes), 30)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    (start,) = starts(notes)
    assert heard(start) == {"USR1"}


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_terminal_that_is_closed_takes_nothing_from_the_code(notes, shell):
    """Every line that the scripts then say fails."""
    python = notes.parent / "bin" / "python"  # which is asked how many GPUs there are
    python.write_text("#!/bin/sh\necho 0\n")
    python.chmod(0o755)
    process = hung_up([shell, LOCAL, "recipe.yaml"], notes, LEAVES="waits")
    assert process.wait(60) == 75
    assert len(starts(notes)) == 1


def hung_up(command: list[str], notes: Path, **variables: str) -> subprocess.Popen[bytes]:
    """A command at a terminal of its own, which is closed once v2f was started."""
    master, slave = pty.openpty()

    def lead() -> None:
        hear_all()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | variables,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lead,
    )
    os.close(slave)
    until(lambda: starts(notes), 30)
    os.close(master)
    return process


def test_a_pipe_that_broke_takes_nothing_from_the_code(notes):
    process = again("1", V2F_RESTARTS="2")
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(60) == 1
    assert len(starts(notes)) == 3


def test_a_request_between_two_starts_is_heard_too(notes):
    process = again("1", V2F_PAUSE="600")
    assert process.stderr is not None
    assert process.stderr.readline() == "v2f: exited with 1; restarting in 600 s, then at most 2 more times\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (process.returncode, len(starts(notes))) == (75, 1)


def node(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What train.sbatch starts on the second of three nodes of two GPUs and 16 cores each."""
    slurm = {"JOB_ID": "54321", "STEP_ID": "2", "NODEID": "1", "JOB_NUM_NODES": "3", "CPUS_ON_NODE": "16"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    environment |= {"SLURM_GPUS_ON_NODE": "2", "V2F_HEAD": "10.0.0.7", "LEAVES": "0"}
    command = [NODE, "recipe.yaml", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment | variables, capture_output=True, text=True
    )


def test_a_node_starts_a_rank_a_gpu_and_its_other_cores_decode(notes, tmp_path):
    assert node("train.steps=5", V2F_CACHE_GB="20", SLURM_TMPDIR=str(tmp_path), V2F_NETWORK="tcp").returncode == 0
    (start,) = starts(notes)
    arguments = (start / "arguments").read_text().strip()
    assert arguments.startswith("exec torchrun --nnodes 3 --nproc-per-node 2 --rdzv-id 54321.2 --rdzv-backend c10d ")
    assert "--rdzv-endpoint 10.0.0.7:24321 --rdzv-conf is_host=false,read_timeout=300 v2f/train.py" in arguments
    ours = f"data.cache={{path: {tmp_path}/v2f-cache-"
    assert f" v2f/train.py --config recipe.yaml --resume auto {ours}" in arguments
    assert arguments.endswith(", gb: 20} data.workers=7 train.steps=5")
    environment = (start / "environment").read_text().splitlines()
    assert {"OMP_NUM_THREADS=1", "NCCL_IB_DISABLE=1"} <= set(environment)
    assert not [line for line in environment if line.startswith("ACCELERATE_USE_CPU")]


def test_a_node_without_gpus_computes_on_its_cores(notes):
    assert node(SLURM_GPUS_ON_NODE="", V2F_RANKS="4", SLURM_NODEID="0").returncode == 0
    (start,) = starts(notes)
    arguments = (start / "arguments").read_text()
    assert "--nproc-per-node 4" in arguments
    assert "is_host=true" in arguments
    assert "data." not in arguments
    assert {"OMP_NUM_THREADS=4", "ACCELERATE_USE_CPU=true"} <= set((start / "environment").read_text().splitlines())


def test_secrets_come_from_a_file_that_nobody_else_reads(notes, tmp_path):
    secrets = tmp_path / ".config/v2f/secrets.env"
    secrets.parent.mkdir(parents=True)
    secrets.write_text("AWS_SECRET_ACCESS_KEY='a b'\n")
    secrets.chmod(0o640)
    done = node()
    assert (done.returncode, starts(notes)) == (78, [])
    assert f"{secrets} holds secrets" in done.stderr
    assert done.stderr.strip().endswith(f"chmod 600 {secrets}")
    secrets.chmod(0o600)
    done = node()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (start,) = starts(notes)
    assert "AWS_SECRET_ACCESS_KEY=a b" in (start / "environment").read_text().splitlines()
    assert "a b" not in (start / "arguments").read_text()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"V2F_SECRETS": "/nowhere"}, "V2F_SECRETS: there is no /nowhere"),
        (
            {"V2F_NETWORK": "infinband"},
            "V2F_NETWORK: there is no launch/nccl/infinband.env; choose one of efa.env infini",
        ),
        ({"PATH": "/usr/bin:/bin"}, "there is no v2f here"),
    ],
)
def test_a_node_tells_a_mistake_in_one_line_and_is_not_started_again(notes, variables, told):
    done = node(**variables)
    assert (done.returncode, starts(notes)) == (78, [])
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_local_without_a_recipe_tells_how_it_is_used(notes):
    done = subprocess.run([LOCAL], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 78
    assert done.stdout.startswith("Train a recipe on this machine")
    assert "V2F_RANKS=2 launch/local" in done.stdout
    assert "#" not in done.stdout


@pytest.mark.slow
def test_local_trains_on_two_processes_is_stopped_as_by_ctrl_c_and_goes_on(endless, tmp_path):
    out, command = endless["out"], [LOCAL, recipe(endless, tmp_path, ENDLESS), "--allow-changes", "train.keep=3"]
    environment, log = os.environ | {"V2F_RANKS": "2"}, tmp_path / "log.txt"
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stderr=said, start_new_session=True, preexec_fn=hear_all
        )
    until(lambda: steps_logged(out) > 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all in the foreground
    assert process.wait(120) == 75, log.read_text()[-3000:]
    step = saved_step(out)
    assert f"SIGUSR1: saved at step {step} of {ENDLESS}" in log.read_text()
    assert log.read_text().endswith("v2f: stopped; run the same command to resume\n")
    recipe(endless, tmp_path, step + 5)
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert told_starts(out) == [(0, 2), (step, 2)]
    assert_every_slot_once(out, step + 5)


# ------------------------------------------------------------------------------------------------ with a real one


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="v2f-slurm-")))
        try:
            yield stack.enter_context(serving(folder, REPOSITORY))
        except NoSlurmError as error:
            pytest.skip(str(error))


@pytest.mark.slow
def test_a_job_of_two_nodes_meets_its_time_limit_is_queued_again_and_goes_on_at_the_very_next_slot(
    slurm, endless, tmp_path
):
    out, log = endless["out"], tmp_path / "log.txt"
    options = ["--nodes=2", "--cpus-per-task=1", f"--output={log}"]
    job = slurm.submit(TRAIN, recipe(endless, tmp_path, ENDLESS), "--allow-changes", options=options)
    until(lambda: steps_logged(out) > 2, 300)
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")  # minutes: --signal=B:USR1@600 is due at once
    slurm.wait_queued_again(job)
    step = saved_step(out)
    assert f"saved at step {step} of {ENDLESS}; resume with --resume auto" in log.read_text()
    recipe(endless, tmp_path, step + 5)
    slurm.start_soon(job)
    assert slurm.end(job) == "COMPLETED", log.read_text()[-3000:]
    assert told_starts(out) == [(0, 2), (step, 2)]
    assert_every_slot_once(out, step + 5)
    assert log.read_text().count("v2f: stopped and saved; requeued\n") == 1
    assert slurm.told(job)["Restarts"] == "1"


@pytest.mark.slow
def test_a_mistake_fails_the_job_and_is_not_queued_again(slurm, endless, tmp_path):
    log = tmp_path / "log.txt"
    options = ["--cpus-per-task=1", f"--output={log}"]
    job = slurm.submit(TRAIN, recipe(endless, tmp_path, 4), "train.stepps=9", options=options)
    assert slurm.end(job) == "FAILED"
    told = slurm.told(job)
    assert (told["ExitCode"], told["Restarts"]) == ("78:0", "0")
    assert "train.stepps" in log.read_text()
    assert "train.steps" in log.read_text()
    assert "restarting" not in log.read_text()


@pytest.mark.parametrize(
    ("leaves", "code", "times"),
    [("1", "1:0", 4), ("$((SLURM_NODEID ? 1 : 78))", "78:0", 1), ("$((SLURM_NODEID ? 78 : 1))", "78:0", 1)],
)
def test_the_worst_code_of_the_nodes_decides(slurm, notes, tmp_path, leaves, code, times):
    options = ["--nodes=2", f"--output={tmp_path}/log.txt"]
    job = slurm.submit(TRAIN, "recipe.yaml", options=options, LEAVES=leaves)
    assert slurm.end(job) == "FAILED"
    assert (slurm.told(job)["ExitCode"], len(starts(notes))) == (code, 2 * times)


def test_a_job_that_is_asked_to_save_asks_both_nodes_and_is_queued_again_as_often_as_it_takes(slurm, notes, tmp_path):
    options = ["--nodes=2", f"--output={tmp_path}/log.txt"]
    job = slurm.submit(TRAIN, "recipe.yaml", options=options, LEAVES="waits")
    for times in (1, 2):
        until(lambda times=times: len(starts(notes)) == 2 * times)
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        slurm.wait_queued_again(job, times)
        assert [heard(start) for start in starts(notes)] == [{"USR1"}] * 2 * times
        slurm.start_soon(job)
    until(lambda: len(starts(notes)) == 6)
    slurm.run("scancel", job)
    assert slurm.end(job) == "CANCELLED"


def test_a_job_that_is_preempted_saves_and_is_queued_again(slurm, notes, tmp_path):
    options = ["--nodes=2", "--exclusive", f"--output={tmp_path}/log.txt"]
    job = slurm.submit(TRAIN, "recipe.yaml", options=options, LEAVES="waits")
    until(lambda: len(starts(notes)) == 2)
    urgent = slurm.submit(
        options=["--partition=urgent", "--exclusive", f"--output={tmp_path}/urgent.txt", "--wrap=true"]
    )
    slurm.wait_queued_again(job)
    assert slurm.end(urgent) == "COMPLETED"
    assert all(heard(start) for start in starts(notes))
    assert "v2f: stopped and saved; requeued\n" in (tmp_path / "log.txt").read_text()
    slurm.run("scancel", job)


def test_a_job_that_is_cancelled_saves_and_stays_cancelled(slurm, notes, tmp_path):
    options = ["--nodes=2", f"--output={tmp_path}/log.txt"]
    job = slurm.submit(TRAIN, "recipe.yaml", options=options, LEAVES="waits")
    until(lambda: len(starts(notes)) == 2)
    slurm.run("scancel", job)
    assert slurm.end(job) == "CANCELLED"
    until(lambda: all((start / "heard").exists() for start in starts(notes)))
    told = slurm.told(job)
    assert (told["JobState"], told["Restarts"]) == ("CANCELLED", "0")
    assert "requeued" not in (tmp_path / "log.txt").read_text()


def test_a_part_that_meets_its_time_limit_is_queued_again(slurm, notes, tmp_path):
    options = ["--array=0-1", "--cpus-per-task=1", f"--output={tmp_path}/%a.txt"]
    job = slurm.submit(PACK, "recipe.yaml", "out=here", options=options, LEAVES="waits")
    until(lambda: len(starts(notes)) == 2)
    slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_1")
    slurm.wait_queued_again(f"{job}_1")
    (ended,) = [start for start in starts(notes) if (start / "heard").exists()]  # and not the other part
    assert (heard(ended), (ended / "arguments").read_text().split()[-1]) == ({"TERM"}, "1/2")
    slurm.start_soon(f"{job}_1")
    until(lambda: len(starts(notes)) == 3)
    told = sorted((start / "arguments").read_text().strip() for start in starts(notes))
    assert told == [f"shards pack recipe.yaml workers=1 out=here --part {part}/2" for part in (0, 1, 1)]
    slurm.run("scancel", job)
    until(lambda: set(slurm.states(job)) == {"CANCELLED"}, 120)


@pytest.mark.slow
def test_an_array_packs_the_parts_and_a_job_that_waits_for_it_commits_them(slurm, tmp_path):
    people = [f"synthetic.{split}.people={count}" for split, count in [("train", 12), ("valid", 2), ("test", 2)]]
    arguments = ["shards/quickstart.yaml", f"out={tmp_path}/shards", *people, "synthetic.seen.people=2"]
    arguments += ["synthetic.seconds=0.5"]
    options = ["--array=0-2", "--cpus-per-task=1", f"--output={tmp_path}/%a.txt"]
    parts = slurm.submit(PACK, *arguments, options=options)
    waits = [f"--dependency=afterok:{parts}", "--kill-on-invalid-dep=yes", f"--output={tmp_path}/finalize.txt"]
    commit = slurm.submit(options=[*waits, f"--wrap=v2f shards finalize {' '.join(arguments)}"])
    assert slurm.end(commit) == "COMPLETED", [path.read_text()[-500:] for path in sorted(tmp_path.glob("*.txt"))]
    assert slurm.states(parts) == ["COMPLETED"] * 3
    assert verify(f"{tmp_path}/shards") == []
    assert open_dataset(f"{tmp_path}/shards").split("train").samples == 24
    job = slurm.submit(
        PACK, *arguments, options=["--array=1-2", "--cpus-per-task=1", f"--output={tmp_path}/%a-again.txt"]
    )
    assert slurm.end(job) == "FAILED"
    assert "--array: number the parts from 0 without gaps" in (tmp_path / "1-again.txt").read_text()
