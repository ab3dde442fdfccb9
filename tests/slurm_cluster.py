"""A real Slurm on one machine, for tests: munged, slurmctld and two slurmd, which it takes for two nodes.

    sbatch, srun, scancel --munge--> slurmctld --> slurmd "n0" --> slurmstepd --> a job's script and its steps
                                              '--> slurmd "n1" --> slurmstepd --> the same steps' other tasks

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as slurm:
        job = slurm.submit("launch/slurm/train.sbatch", "recipe.yaml", options=["--nodes=2"])

All of it is in one folder, on ports of loopback that were free, with a key made for it; nothing of the machine's own
Slurm is read. It needs neither systemd nor cgroups, and runs as root or as whoever starts it, who then owns all jobs.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow_server import until
from ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
OVER = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"})
LOOK_S = 0.2  # a look is a process
JOBS = 100  # at most, of a cluster

# The timeouts: a machine under load is slow, not gone, and Slurm would queue a job again that has begun.
# proctrack/linuxproc and task/none do without cgroups. CR_CPU shares a node between jobs by its CPUs, of which it
# claims more than there are: config_overrides believes it. KillWait: what `scancel` gives a job. A job of the partition
# `urgent` preempts those of `main`, which have a minute.
_CONF = """\
ClusterName=v2f-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=1
ReturnToService=2
KillWait=60
MinJobAge=3600
MessageTimeout=90
BatchStartTimeout=120
FirstJobId={first_job}
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""


class NoSlurmError(Exception):
    """Slurm cannot be started here; says why."""


class Slurm:
    """A cluster that runs. Jobs start in ``where``, with this process's environment as it is when they are queued."""

    def __init__(self, conf: Path, where: Path) -> None:
        self._conf = conf
        self._where = where

    def run(self, *command: str, **variables: str) -> str:
        """What one of Slurm's commands prints; AssertionError if it fails."""
        environment = os.environ | {"SLURM_CONF": str(self._conf)} | variables
        done = subprocess.run(command, env=environment, cwd=self._where, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *script: str, options: Sequence[str] = (), **variables: str) -> str:
        """The id of a job that is queued, with ``variables`` added to its environment."""
        return self.run("sbatch", "--parsable", *options, *script, **variables)

    def told(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` tells of a job, or of the first of an array."""
        pairs = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[0].split()
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    def states(self, job: str) -> list[str]:
        """The state of a job, or of each job of an array."""
        lines = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair)["JobState"] for line in lines]

    def end(self, job: str, seconds: float = 300.0) -> str:
        """The state in which a job ends."""
        until(lambda: self.told(job)["JobState"] in OVER, seconds, LOOK_S)
        return self.told(job)["JobState"]

    def wait_queued_again(self, job: str, times: int = 1, seconds: float = 300.0) -> None:
        """Wait until a job that has run waits to run again, for so many times; AssertionError with what is known."""

        def queued() -> bool:
            told = self.told(job)
            return (told["JobState"], told["Restarts"]) == ("PENDING", str(times))

        try:
            until(queued, seconds, LOOK_S)
        except AssertionError:
            told = self.told(job)
            logs = [Path(told["StdOut"]), *sorted(self._conf.parent.glob("slurm*.log"))]
            said = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in logs if path.exists())
            raise AssertionError(f"job {job} is not queued again but {told['JobState']}\n{said}") from None

    def start_soon(self, job: str) -> None:
        """Shorten the two minutes' rest that Slurm gives a job that is queued again, and limit it to a day anew.

        Not to nothing: what the first start was allowed is revoked by the second of the clock, and a node would refuse
        one that begins in the same.
        """
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2seconds", "TimeLimit=1440")


def _program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise NoSlurmError(f"there is no {name}: install Slurm (Debian: apt-get install slurmctld slurmd slurm-client)")
    return found


def _end_all_jobs(environment: dict[str, str]) -> None:
    """Steps would outlive their slurmd."""

    def ask(*command: str) -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()

    ask("scancel", f"--user={getpass.getuser()}", "--full", "--signal=KILL")
    ask("scancel", f"--user={getpass.getuser()}")
    with contextlib.suppress(AssertionError):
        until(lambda: not ask("squeue", "--noheader"), 60)


@contextlib.contextmanager
def serving(folder: Path, where: Path) -> Iterator[Slurm]:
    """Slurm with the nodes n0 and n1 from ``folder``; its jobs start in ``where``. NoSlurmError where it cannot be."""
    programs = {name: _program(name) for name in PROGRAMS}
    # launch/slurm/node lets the ranks of job J meet at port 20,000 + J % 10,000: the jobs get numbers of free ports
    controller, *nodes, first_job = free_ports(3 + JOBS, 20_000, 30_000)[:4]
    (folder / "state").mkdir()
    for node in ("n0", "n1"):
        (folder / f"spool-{node}").mkdir()
    host = socket.gethostname()
    (folder / "slurm.conf").write_text(
        _CONF.format(
            host=host,
            controller=controller,
            first_job=first_job,
            user=getpass.getuser(),
            folder=folder,
            nodes="\n".join(
                f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"
                for number, port in enumerate(nodes)
            ),
        )
    )
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munged = [programs["munged"], "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    daemons = [munged, [programs["slurmctld"], "-D"], *([programs["slurmd"], "-D", "-N", f"n{n}"] for n in range(2))]
    running: list[subprocess.Popen[bytes]] = []
    slurm = Slurm(folder / "slurm.conf", where)

    def alive() -> None:
        for process, daemon in zip(running, daemons, strict=False):
            if process.poll() is not None:
                name = Path(daemon[0]).name
                raise NoSlurmError(f"{name} does not start here: {(folder / f'{name}.out').read_text()[-500:]}")

    def idle() -> bool:
        alive()
        found = subprocess.run(
            ["sinfo", "--noheader", "--format=%T %D"], env=environment, capture_output=True, text=True
        )
        return found.stdout.strip() == "idle 2"

    try:
        for daemon in daemons:
            with (folder / f"{Path(daemon[0]).name}.out").open("ab") as said:
                running.append(subprocess.Popen(daemon, env=environment, stdout=said, stderr=said))
            if daemon is munged:
                until(lambda: alive() or (folder / "munge.socket").exists(), 20)
        try:
            until(idle, 60)
        except AssertionError:
            said = "".join(path.read_text()[-400:] for path in sorted(folder.glob("slurm*.log")))
            raise NoSlurmError(f"Slurm's two nodes do not come up here: {said}") from None
        yield slurm
    finally:
        if all(process.poll() is None for process in running):
            _end_all_jobs(environment)
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
        for process in reversed(running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
