"""Every manifest renders, validates and keeps every promise; where one is taken out, a rule says so."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rendered import FOLDERS, Object, name_of, world
from rules import RULES, Rule

MINORS = ["1.31", "1.37"]  # the oldest Kubernetes that the manifests are for, and the newest known


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_overlay_keeps_every_promise(folder):
    objects = world(folder)
    assert [problem for rule in RULES for problem in rule.check(objects)] == []


@pytest.mark.parametrize("minor", MINORS)
def test_core_kinds_are_valid_by_their_schemas(minor):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    checked = set()
    for _, _, found in distinct():
        if found["apiVersion"] in ("v1", "apps/v1", "batch/v1", "networking.k8s.io/v1"):  # not a custom resource
            validate.validate(found, minor, strict=True)
            checked.add(found["kind"])
    assert checked == {
        "ConfigMap", "Deployment", "Job", "Namespace", "NetworkPolicy", "Service", "ServiceAccount", "StatefulSet",
    }  # fmt: skip


@functools.cache
def distinct() -> list[tuple[str, int, Object]]:
    """Every manifest once, though most overlays have it: its folder, its place there, and itself."""
    found: dict[str, tuple[str, int, Object]] = {}
    for folder in FOLDERS:
        for number, each in enumerate(world(folder)):
            found.setdefault(json.dumps(each), (folder, number, each))
    return list(found.values())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.promise)
def test_a_promise_that_is_broken_is_noticed(rule: Rule):
    covered, broken = 0, 0
    for folder, number, found in distinct():
        if not rule.covers(found):
            continue
        covered += 1
        objects, mutants = world(folder), 0
        for mutant in (mutant for each in rule.breaks for mutant in each(found)):
            assert mutant != found
            others = [*([] if mutant is None else [mutant]), *objects[:number], *objects[number + 1 :]]
            noticed = any(rule.check(others))
            assert noticed, f"{folder}: {name_of(found)}: nobody notices {difference(found, mutant)}"
            mutants += 1
        assert mutants, f"{name_of(found)} is covered, but no way to break it there is known"
        broken += mutants
    assert covered
    assert broken >= covered


# What may go from a manifest without breaking a promise; each with its why.
FREE = [
    r"ConfigMap/nccl-.*/data(/.*)?",  # tests/preflight/test_nccl_settings.py
    r"ConfigMap/settings/data/(AWS_DEFAULT_REGION|AWS_ENDPOINT_URL|OMP_NUM_THREADS|ACCELERATE_USE_CPU)",  # the site's
    r".*/metadata/name",  # the server refuses it
    r".*/(apiVersion|kind)",
    r"Namespace/v2f/metadata/labels/pod-security\.kubernetes\.io/(warn|audit)",
    r"NetworkPolicy/.*/ports/\d+/protocol",  # TCP, where nothing is said
    r"NetworkPolicy/.*/policyTypes(/\d+)?",  # follows from the rest, but for the first one, which is tested
    r"Job/train/spec/(template/)?.*/(affinity|tolerations|nodeSelector)(/.*)?",  # the site's nodes
    r"TrainingRuntime/.*/(tolerations|nodeSelector)(/.*)?",
    r"Job/.*/args/\d+",  # tests/k8s/test_kubernetes_commands.py, but for what rules say
    r"TrainJob/.*/args/\d+",
    r"Job/.*/spec/template/spec/containers/\d+/(ports|ports/\d+|ports/\d+/name)",
    r"(Job|Deployment)/.*/resources/(requests|limits)/(nvidia\.com/gpu|rdma/hca_shared)",
    r"StatefulSet/.*/fsGroupChangePolicy",  # speed
    r".*/(timeoutSeconds|periodSeconds|failureThreshold)",  # have defaults; the startup probe's are a rule
    r"Service/.*/ports/\d+/(name|targetPort)",
    r"TrainingRuntime/v2f/metadata/labels/trainer\.kubeflow\.org/framework",  # a label for people
    r"Job/(account|finalize)/spec/(completions|parallelism)",  # one is the default
    r"Job/account/.*/(command|args)(/\d+)?",  # tests/k8s/test_without_a_cluster.py runs it
    r"Job/account/.*/env/0(/.*)?",
    r"Job/account/.*/env/\d+/value",
    r"(Deployment|StatefulSet)/.*/containers/\d+/name",  # the schemas ask for it
    r"StatefulSet/postgres/.*Probe/exec/command/[123]",  # --quiet, and what keeps the server's log quiet
]
FREE_IN = {"examples/trainjob": [r"ConfigMap/settings/data/(NODES|PROCESSES)"]}  # PET_* say it there


def test_no_line_of_a_manifest_can_go_unnoticed():
    """Not only what the rules' authors thought of: every key and every item is taken out, one after the other."""
    unnoticed, taken = [], 0
    for folder, number, found in distinct():
        objects, text = world(folder), json.dumps(found)
        for path in paths(found, ()):
            label = "/".join([name_of(found), *map(str, path)])
            if any(re.fullmatch(free, label) for free in FREE + FREE_IN.get(folder, [])):
                continue
            mutant = node = json.loads(text)
            for step in path[:-1]:
                node = node[step]
            del node[path[-1]]
            taken += 1
            others = [mutant, *objects[:number], *objects[number + 1 :]]
            # First what is said about it alone, which is most, and fast.
            checks = [*(rule.about(mutant, others) for rule in RULES), *(rule.check(others) for rule in RULES)]
            if not any(map(any, checks)):
                unnoticed.append(f"{folder}: {label}")
    assert unnoticed == []
    assert taken > 1000


def paths(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def difference(one: Any, two: Any) -> str:
    if two is None:
        return "that it is gone"
    before, after = dict(leaves(one, ())), dict(leaves(two, ()))
    differing = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    return str({key: (before.get(key), after.get(key)) for key in differing})


def leaves(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    if not items:
        yield "/".join(map(str, path)), node
    for key, value in items:
        yield from leaves(value, (*path, key))
