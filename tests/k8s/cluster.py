"""A cluster's part in a run, on this machine: it does to the containers' commands what kubelet and Job controller do.

    kubectl kustomize --> objects --> stage by stage: servers, until their readinessProbe says so; Jobs, to their end
    a container --> a process of the pod's user in /app (here: the repository), with the manifest's variables alone

What is not a cluster's: names and ports. ``127.0.0.1`` has one of each, so the names that the manifests give are
replaced by free ports here (:data:`NAMES`, and the ports that containers listen on), and the paths that volumes are
mounted at by folders of this pod. PostgreSQL's image is not ours: what its entrypoint does with ``POSTGRES_*`` is told
in :meth:`Cluster._postgres`, with Debian's programs.
"""

import functools
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow_server import until
from ports import free_ports
from rendered import REPOSITORY, Object, World, containers, environment, filled, has_pods, jobs, name_of, pods

from v2f.training.stopping import STOPPED

NAMES = ["mlflow:5000", "postgres:5432", "train-0.train.v2f.svc.cluster.local:29500"]
_IMAGE = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # the Dockerfile's, as far as it is not a place


def postgres_programs() -> Path:
    """The folder of the newest PostgreSQL that Debian installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("no PostgreSQL here (Debian's package postgresql)")
    return found[-1].parent


@dataclass
class Pod:
    """A container that runs, or ran."""

    owner: str
    index: int
    process: "subprocess.Popen[bytes]"
    log: Path
    lost: bool = False  # its node went away: the condition DisruptionTarget


@dataclass
class Cluster:
    """``folder`` must be one that every user can enter. ``secrets``: name -> key -> value."""

    folder: Path
    objects: World
    secrets: dict[str, dict[str, str]]
    pods: list[Pod] = field(default_factory=list)
    codes: list[tuple[str, int, int]] = field(default_factory=list)  # owner, index, exit code, as they came

    def __post_init__(self) -> None:
        self.addresses = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))

    def port(self, name: str) -> int:
        (port,) = [port for address, port in self.addresses.items() if address.partition(":")[0] == name]
        return port

    # ------------------------------------------------------------------------------------------ stages, Jobs

    def bring_up(self, meanwhile: Callable[[str], None] = lambda stage: None) -> None:
        """All stages in their order; ``meanwhile`` is called again and again while a Job runs."""
        found = [each for each in self.objects if has_pods(each)]
        for stage in sorted({each["metadata"]["labels"]["v2f/stage"] for each in found}):
            mine = [each for each in found if each["metadata"]["labels"]["v2f/stage"] == stage]
            for server in sorted((each for each in mine if each["kind"] != "Job"), key=name_of, reverse=True):
                self.serve(server)
            for job in (each for each in mine if each["kind"] == "Job"):
                self.run(job, lambda stage=stage: meanwhile(stage))

    def run(self, job: Object, meanwhile: Callable[[], None] = lambda: None) -> None:
        """As the Job controller: all indices at once, who fails is judged by podFailurePolicy and started again."""
        (spec,) = jobs(job)
        assert spec["parallelism"] == spec["completions"]
        meets = "subdomain" in spec["template"]["spec"]
        failures, stopping, waiting = 0, False, list(range(spec["completions"]))
        running: dict[int, Pod] = {}

        def may_start(index: int) -> bool:
            # Where a pod has a machine and a name of its own, only pod 0 can host the rendezvous, and who was stopped
            # is gone before a scheduler has found a place for its successor. Here that takes order.
            return not stopping and (index == 0 or not meets or self._hosted())

        def ended() -> bool:
            return not running or any(pod.process.poll() is not None for pod in running.values())

        while waiting or running:
            stopping = stopping and bool(running)
            for index in sorted(waiting):
                if may_start(index):
                    waiting.remove(index)
                    running[index] = self.start(job, index)
            until(lambda: meanwhile() or ended() or any(map(may_start, waiting)), 300)
            for index, pod in list(running.items()):
                code = pod.process.poll()
                if code is None:
                    continue
                self.codes.append((pod.owner, index, code))
                del running[index]
                if code == 0:
                    continue
                action = judged(spec, code, pod.lost)
                assert action != "FailJob", f"{pod.owner} {index} failed the Job with {code}:\n{tail(pod.log)}"
                failures += action == "Count"
                limit = spec.get("backoffLimit", spec.get("backoffLimitPerIndex"))
                assert failures <= min(limit, 2), f"{pod.owner} {index} left with {code}:\n{tail(pod.log)}"
                stopping |= code == STOPPED
                waiting.append(index)

    def _hosted(self) -> bool:
        """Whether a rendezvous takes connections at pod 0's name."""
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port("train-0.train.v2f.svc.cluster.local"))) == 0

    def serve(self, server: Object) -> None:
        """Start it, and come back when its readinessProbe is content."""
        pod = self.start(server, 0)
        (container,) = containers(server)

        def ready() -> bool:
            assert pod.process.poll() is None, tail(pod.log)
            return self._probed(server, container["readinessProbe"])

        until(ready, 120)

    def _probed(self, server: Object, probe: Object) -> bool:
        port = self.port(server["metadata"]["name"])
        if "exec" in probe:
            command = [*probe["exec"]["command"], f"--port={port}"]
            return subprocess.run(command, env={"PATH": str(postgres_programs())}).returncode == 0
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{probe['httpGet']['path']}", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    # ------------------------------------------------------------------------------------------ pods

    def start(self, found: Object, index: int) -> Pod:
        """A new pod: new folders for its volumes, its user, its variables and nothing else."""
        (pod,), (container,), owner = pods(found), containers(found), found["metadata"]["name"]
        home = self.folder / f"{owner}-{index}-{len(self.pods)}"
        user = pod["securityContext"]["runAsUser"]
        if owner == "postgres":  # initdb wants a user with a name
            user = pwd.getpwnam("postgres").pw_uid
        places = {}
        for mount in container["volumeMounts"]:
            if mount["mountPath"] != "/dev/shm":
                places[mount["mountPath"]] = home / mount["name"]
                places[mount["mountPath"]].mkdir(parents=True)
        values = environment(container, self.objects, lambda name, key: self.secrets[name][key])
        if jobs_are_indexed(found):
            values["JOB_COMPLETION_INDEX"] = str(index)
        words = [filled(word, values) for word in [*container.get("command", []), *container.get("args", [])]]
        here = {name: self._here(value, places) for name, value in values.items()}
        here |= {name: str(self.port(owner)) for name in here if name.endswith("_PORT") and here[name] == "5000"}
        here |= _IMAGE | {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "PYTHONPATH": str(REPOSITORY)}
        here["LANG"] = "C.UTF-8"  # as in python's image
        command = [self._here(word, places) for word in words]
        prefix = confined(user, [*places.values()])
        if os.geteuid() == 0:
            for place in places.values():
                shutil.chown(place, user, user)
        if owner == "postgres":
            command = self._postgres(here, places, prefix)
        log = self.folder / f"{home.name}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [*prefix, *command], env=here, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip
        self.pods.append(Pod(owner, index, process, log))
        return self.pods[-1]

    def _here(self, text: str, places: dict[str, Path]) -> str:
        """A text of a manifest with this machine's ports and folders."""
        found = {name: f"127.0.0.1:{port}" for name, port in self.addresses.items()}
        found |= {path: str(place) for path, place in places.items()}
        known = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
        return re.sub(rf"(?<![\w/.-])({known})(?=[/,]|$)|(?<=//)({known})\b|(?<=@)({known})\b", _replacer(found), text)

    def _postgres(self, values: dict[str, str], places: dict[str, Path], prefix: list[str]) -> list[str]:
        """What the image's entrypoint does: a cluster for the named superuser with its password, the database, then
        the server, which takes connections by password alone."""
        programs = postgres_programs()
        password = places["/tmp"] / "password"
        password.write_text(values["POSTGRES_PASSWORD"])
        if os.geteuid() == 0:
            shutil.chown(password, pwd.getpwnam("postgres").pw_uid)
        data, run = values["PGDATA"], str(places["/var/run/postgresql"])
        initdb = [programs / "initdb", "-D", data, "-U", values["POSTGRES_USER"], "--pwfile", password]
        once = {"PGDATA": data, "LANG": "C.UTF-8", "PATH": os.defpath}
        quiet = {"env": once, "cwd": "/", "check": True, "stdout": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        subprocess.run([*prefix, *initdb, "-A", "scram-sha-256", "-E", "UTF8", "--no-sync"], **quiet)
        alone = [programs / "postgres", "--single", "-D", data, "postgres"]
        database = f'CREATE DATABASE "{values["POSTGRES_DB"]}"\n'.encode()
        subprocess.run([*prefix, *alone], **(quiet | {"input": database, "stdin": None}))
        password.unlink()
        return [str(programs / "postgres"), "-D", data, "-p", str(self.port("postgres")), "-h", "127.0.0.1", "-k", run]

    def newest(self, owner: str, index: int) -> Pod:
        return [pod for pod in self.pods if (pod.owner, pod.index) == (owner, index)][-1]

    def said(self, owner: str) -> str:
        """The last words of its pods, in their order, for whoever must find out why they left."""
        return "\n".join(tail(pod.log) for pod in self.pods if pod.owner == owner)

    def lose(self, pod: Pod) -> None:
        """Its node goes away without a word."""
        pod.lost = True
        os.killpg(pod.process.pid, signal.SIGKILL)

    def evict(self, pod: Pod) -> None:
        """What the kubelet does to a pod that must go: SIGTERM to its first process."""
        pod.process.send_signal(signal.SIGTERM)

    def tear_down(self) -> None:
        for pod in reversed(self.pods):
            if pod.process.poll() is None:
                os.killpg(pod.process.pid, signal.SIGKILL)
            pod.process.wait()


def _replacer(found: dict[str, str]) -> Callable[["re.Match[str]"], str]:
    return lambda match: found[next(filter(None, match.groups()))]


def judged(spec: Object, code: int, lost: bool) -> str:
    """What the first rule of podFailurePolicy that fits says about a pod that failed."""
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule and code in rule["onExitCodes"]["values"]:
            return str(rule["action"])
        if lost and any(each["type"] == "DisruptionTarget" for each in rule.get("onPodConditions", [])):
            return str(rule["action"])
    return "Count"


def jobs_are_indexed(found: Object) -> bool:
    return any(job.get("completionMode") == "Indexed" for job in jobs(found))


def confined(user: int, places: list[Path]) -> list[str]:
    """What to put before a command so that it runs as a security context says: as that user, without a capability or
    a way to one, on a root file system that is read-only but for ``places``. Only root can do that, and not everywhere;
    elsewhere it runs as whoever runs the tests."""
    if os.geteuid() != 0:
        return []
    drop = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL"]
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", *drop, "--"]
    if not can_confine():
        return become if user == pwd.getpwnam("postgres").pw_uid else []
    return ["unshare", "--mount", "--propagation=private", "sh", "-ec", _confinement(places), *become]


def _confinement(places: list[Path]) -> str:
    lines = [f"mount --bind {place} {place}" for place in map(shlex.quote, map(str, places))]
    python = Path(sys.base_prefix)
    closed = [each for each in python.parents if not each.stat().st_mode & 0o001]
    if closed:  # Python in a folder that only root enters, as pyenv's in /root: there, show Python alone
        door = places[0].parent / "door"
        inside = door / python.relative_to(closed[-1])
        inside.mkdir(parents=True, exist_ok=True)
        lines += [f"mount --bind {python} {inside}", f"mount --rbind {door} {closed[-1]}"]
    return "\n".join([*lines, "mount -o remount,bind,ro /", 'exec "$0" "$@"'])


@functools.cache
def can_confine() -> bool:
    """Whether root may mount here: a container often may not."""
    command = ["unshare", "--mount", "--propagation=private", "mount", "-o", "remount,bind,ro", "/"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def tail(log: Path) -> str:
    """The last lines of a log, of a progress bar its last state alone."""
    lines = [line.rpartition("\r")[2] for line in log.read_text(errors="replace").split("\n")]
    return "\n".join([f"--- {log.name}", *lines])[-3000:]
