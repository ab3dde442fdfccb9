"""What `kubectl kustomize` makes of k8s/, and the Secrets that launch/kubernetes makes: read by all tests here."""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ["base", *(f"{kind}/{path.name}" for kind in ("overlays", "examples") for path in sorted(
    (REPOSITORY / "k8s" / kind).iterdir()))]  # fmt: skip
ADMIN_KEYS = {"AWS_ACCESS_KEY_ID": "the-store's-own", "AWS_SECRET_ACCESS_KEY": "a-secret-of-no-value"}

Object = dict[str, Any]
World = list[Object]


def render(folder: str | Path) -> World:
    """The objects that `kubectl kustomize` makes of a folder."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, which renders the overlays")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # a deprecated field is said there
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def world(name: str) -> World:
    """The objects of k8s/NAME; the same each time, so nobody changes them."""
    return render(REPOSITORY / "k8s" / name)


def name_of(found: Object) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def find(objects: World, kind: str, name: str) -> Object:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def jobs(found: Object) -> Iterator[Object]:
    """The specs of all Jobs that an object is or makes."""
    if found["kind"] == "Job":
        yield found["spec"]
    elif found["kind"] == "TrainingRuntime":
        yield from (job["template"]["spec"] for job in found["spec"]["template"]["spec"]["replicatedJobs"])


def templates(found: Object) -> Iterator[Object]:
    """The pod templates of an object, with their labels."""
    if found["kind"] in ("Deployment", "StatefulSet"):
        yield found["spec"]["template"]
    yield from (job["template"] for job in jobs(found))


def pods(found: Object) -> Iterator[Object]:
    return (template["spec"] for template in templates(found))


def containers(found: Object) -> Iterator[Object]:
    for pod in pods(found):
        yield from [*pod.get("initContainers", []), *pod["containers"]]


def has_pods(found: Object) -> bool:
    return any(True for _ in templates(found))


def role(found: Object) -> str:
    """What the pods of an object do: the label v2f/role."""
    (label,) = {template["metadata"]["labels"]["v2f/role"] for template in templates(found)}
    return label


def environment(container: Object, objects: World, secret: Callable[[str, str], str]) -> dict[str, str]:
    """A container's variables as the kubelet makes them: of ConfigMaps, then its own, $(NAME) filled in."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for each in container.get("env", []):
        if "value" in each:
            values[each["name"]] = filled(each["value"], values)
        else:
            reference = each["valueFrom"]["secretKeyRef"]
            values[each["name"]] = secret(reference["name"], reference["key"])
    return values


def filled(text: str, values: dict[str, str]) -> str:
    """$(NAME) as Kubernetes fills it in; a name that nobody set stays as it is, there as here."""
    for name, value in values.items():
        text = text.replace(f"$({name})", value)
    return text


_KUBECTL = """#!/bin/sh
# Stands for kubectl in the tests of launch/kubernetes: notes what it is asked, and keeps the Secrets.
printf '%s\\n' "$*" >>"$STANDIN/asked"
case " $* " in
*" get secret "*) test -e "$STANDIN/secrets/$5" ;;
*" create secret generic "*) cat >"$STANDIN/secrets/$6" ;;
*" get job "*) cat "$STANDIN/condition-$5" 2>/dev/null || echo Complete ;;
*) cat >/dev/null ;;
esac
"""


def launch(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """launch/kubernetes with a stand-in for kubectl, which keeps in ``folder`` what it was asked."""
    (folder / "secrets").mkdir(exist_ok=True, parents=True)
    kubectl = folder / "bin" / "kubectl"
    kubectl.parent.mkdir(exist_ok=True)
    kubectl.write_text(_KUBECTL)
    kubectl.chmod(0o755)
    path = f"{kubectl.parent}:{os.environ['PATH']}"
    values = {"PATH": path, "STANDIN": str(folder), "PAUSE": "0.01", **variables}
    command = [str(REPOSITORY / "launch" / "kubernetes"), *arguments]
    return subprocess.run(command, env=values, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def secrets_in(folder: Path) -> dict[str, dict[str, str]]:
    """The Secrets that the stand-in was given: name -> key -> value."""
    return {
        path.name: dict(line.split("=", 1) for line in path.read_text().splitlines())
        for path in (folder / "secrets").iterdir()
    }


@functools.cache
def documented_secrets() -> dict[str, dict[str, str]]:
    """What `launch/kubernetes secrets` makes."""
    with tempfile.TemporaryDirectory() as folder:
        done = launch(Path(folder), "secrets", **ADMIN_KEYS)
        assert done.returncode == 0, done.stderr
        return secrets_in(Path(folder))
