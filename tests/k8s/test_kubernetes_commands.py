"""What the manifests and launch/kubernetes say, read by the programs that they say it to."""

import math
import os
import re
import shutil

import pytest
from rendered import (
    ADMIN_KEYS,
    FOLDERS,
    REPOSITORY,
    containers,
    find,
    has_pods,
    launch,
    render,
    role,
    secrets_in,
    world,
)
from rules import RULES, STAGES, arguments_of

from bench.large_batch import derived
from v2f.cli import main
from v2f.data.loader import check_batch
from v2f.prepare.pack import load_recipe
from v2f.runs.config import load_config

OVERLAYS = [folder for folder in FOLDERS if folder != "examples/kueue"]  # which changes no argument


@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_training_is_one_that_the_trainer_takes(folder):
    """The recipe takes the overrides, the batch divides over the ranks, and a larger one follows the rule."""
    objects = world(folder)
    (told,) = filter(None, map(arguments_of, objects))
    recipe, overrides = told[0].removeprefix("--config="), told[1:]
    config = load_config(str(REPOSITORY / recipe), overrides)
    settings = find(objects, "ConfigMap", "settings")["data"]
    ranks = int(settings["NODES"]) * int(settings["PROCESSES"])
    check_batch(config.data.batch, ranks, config.system.encoder.bn_group)
    assert math.gcd(config.data.partitions, int(settings["NODES"])) == int(settings["NODES"])
    before = load_config(str(REPOSITORY / recipe))
    if config.data.batch != before.data.batch:
        wanted = derived(before, config.data.batch)
        wanted.pop("train.micro_batch")  # what one process would need; each of these has 16 samples
        assert set(overrides) >= {f"{key}={value}" for key, value in wanted.items()}
        assert config.data.batch == 16 * ranks
    else:
        assert not [word for word in overrides if word.startswith("system.optimizer")]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_pack_is_one_that_the_packer_takes(folder):
    """The recipe takes the overrides; the command line takes the part where the manifest has it."""
    objects = world(folder)
    for name in ("pack", "finalize"):
        (container,) = containers(find(objects, "Job", name))
        words = [word for word in container["args"][1:] if not word.startswith("--")]
        recipe = load_recipe(str(REPOSITORY / container["args"][0]), words)
        assert recipe.out.startswith("$(BUCKET)/data/")
        parts = [word for word in container["args"] if word.startswith("--part=")]
        assert len(parts) == (name == "pack")


def test_the_packer_refuses_a_part_that_is_none(capsys, tmp_path):
    """That is how a Job with another number of completions than parts would end: in one line, before any work."""
    pack = ["shards", "pack", str(REPOSITORY / "shards/quickstart.yaml"), f"out={tmp_path}/none", "--part=2/2"]
    assert main(pack) == 1
    assert "--part 2/2: a part is written i/n" in capsys.readouterr().err


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here, which makes the passwords")


@needs_openssl
def test_secrets_are_made_once_and_stand_in_no_command_line(tmp_path):
    done = launch(tmp_path, "secrets", **ADMIN_KEYS)
    assert done.returncode == 0, done.stderr
    made = secrets_in(tmp_path)
    assert made["s3"] == ADMIN_KEYS
    values = [value for keys in made.values() for value in keys.values()]
    assert len(values) == len(set(values)) == 7
    assert min(map(len, values)) >= 7
    said = (tmp_path / "asked").read_text() + done.stdout + done.stderr
    assert not [value for value in values if value != "trainer" and value in said]
    again = launch(tmp_path, "secrets", **ADMIN_KEYS)
    assert again.stdout.count("exists and is kept") == 4
    assert secrets_in(tmp_path) == made
    without = launch(tmp_path / "new", "secrets")
    assert without.returncode != 0
    assert "AWS_ACCESS_KEY_ID: the key of the object store" in without.stderr
    assert secrets_in(tmp_path / "new") == {}


def test_a_run_is_brought_about_stage_by_stage(tmp_path):
    done = launch(tmp_path, "create", "k8s/overlays/cpu")
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    steps = [line for line in asked if "apply" in line or "rollout" in line or "get job" in line]
    apply = "apply --kustomize k8s/overlays/cpu --selector v2f/stage="
    wait = '--output jsonpath={.status.conditions[?(@.status=="True")].type}'
    assert steps == [
        f"{apply}1-services",
        "--namespace v2f rollout status statefulset/postgres --timeout 10m",
        "--namespace v2f rollout status deployment/mlflow --timeout 10m",
        f"{apply}2-account",
        f"--namespace v2f get job account {wait}",
        f"{apply}3-pack",
        f"--namespace v2f get job pack {wait}",
        f"{apply}4-finalize",
        f"--namespace v2f get job finalize {wait}",
        f"{apply}5-train",
    ]
    assert [step.removeprefix(apply) for step in steps if step.startswith(apply)] == STAGES


def test_a_job_that_fails_stops_what_comes_after_it_and_is_quoted(tmp_path):
    (tmp_path / "condition-pack").write_text("FailureTarget Failed\n")
    done = launch(tmp_path, "create", "k8s/overlays/cpu")
    assert done.returncode == 1
    assert "launch/kubernetes: the Job pack failed; its last log lines:" in done.stderr
    asked = (tmp_path / "asked").read_text()
    assert "logs job/pack --all-pods --tail 20" in asked
    assert "4-finalize" not in asked


def test_stopping_and_going_on_suspend_the_job_and_nothing_else(tmp_path):
    for verb, value in (("stop", "true"), ("resume", "false")):
        assert launch(tmp_path, verb).returncode == 0
        asked = (tmp_path / "asked").read_text().splitlines()[-1]
        assert asked == f'--namespace v2f patch job train --type merge --patch {{"spec": {{"suspend": {value}}}}}'
    assert launch(tmp_path, "remove").returncode == 0
    assert "delete job --selector v2f/stage" in (tmp_path / "asked").read_text().splitlines()[-1]


def test_without_a_verb_it_tells_what_there_is(tmp_path):
    done = launch(tmp_path)
    assert done.returncode == 2
    for verb in ("secrets", "create", "watch", "stop", "resume", "again", "mlflow", "remove"):
        assert f"launch/kubernetes {verb}" in done.stdout
    assert "set -eu" not in done.stdout
    done = launch(tmp_path, "create")
    assert done.returncode != 0
    assert "which overlay? For example k8s/overlays/cpu" in done.stderr


def test_the_overlay_that_the_docs_write_keeps_every_promise(tmp_path):
    """As docs/operating.md has it, with its example of an override."""
    page = (REPOSITORY / "docs" / "operating.md").read_text().partition("## Kubernetes")[2]
    written = re.search(r"kustomization\.yaml <<'END'.*?\n(.*?)END\n", page, re.DOTALL)[1]
    patch = re.search(r"```yaml\n(patches:.*?)```", page, re.DOTALL)[1]
    assert "resources: [../cpu]" in written
    cpu = os.path.relpath(REPOSITORY / "k8s" / "overlays" / "cpu", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(written.replace("../cpu", cpu) + patch)
    objects = render(tmp_path)
    assert [problem for rule in RULES for problem in rule.check(objects)] == []
    (train,) = containers(find(objects, "Job", "train"))
    assert train["image"] == "REGISTRY/v2f:0.1.0"
    assert train["args"][-1] == "train.steps=2000"
    settings = find(objects, "ConfigMap", "settings")["data"]
    assert (settings["BUCKET"], settings["NODES"]) == ("s3://my-bucket", "2")
    for word in re.findall(r"launch/kubernetes ([a-z]+)", page):
        assert f"\n{word})" in (REPOSITORY / "launch" / "kubernetes").read_text()


def test_every_role_has_a_stage_and_an_account():
    objects = world("overlays/cpu")
    roles = {role(each) for each in objects if has_pods(each)}
    assert roles == {each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount"}
