"""The doctor: each check finds what is wrong where it is made wrong, and none of them hangs, dies or tells a secret."""

import io
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from doctor_findings import lines, of
from rich.console import Console
from workers import checks

from v2f.cli import main
from v2f.doctor import devices, examination, installed, recipe
from v2f.doctor.findings import GIB, Finding, Setup
from v2f.doctor.processes import examine, steps
from v2f.runs.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "hush-hush"


# ------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (checks.good, [Finding("x", "ok", "found it at runs")]),
        (checks.dies, [Finding("x", "wrong", "it crashed (signal 11) while loading a library: no error output")]),
        (
            checks.leaves,
            [Finding("x", "wrong", "it crashed (code 3) while loading a library: cannot open shared object file")],
        ),
        (checks.refuses, [Finding("x", "wrong", "http://***@host/x: it is away", "start it")]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_check_tells_what_it_found_or_how_it_ended(check: Any, told: list[Finding]) -> None:
    found = examine("x", check, Setup(), 60)
    assert [(line.verdict, line.found, line.advice) for line in found] == [
        (each.verdict, each.found, each.advice) for each in told
    ]


def test_a_check_that_hangs_costs_its_limit_and_keeps_what_it_had_found() -> None:
    for limit_s in (3, 12, 48):  # on a busy machine the process itself takes its time to start
        begun = time.monotonic()
        found = examine("x", checks.hangs, Setup(), limit_s)
        assert time.monotonic() - begun < 2 * limit_s + 10
        if len(found) > 1:
            break
    alive = [process for process in psutil.process_iter(["cmdline"]) if checks.WAITS in (process.info["cmdline"] or [])]
    assert not alive, "what it had started is still there"
    assert found[0] == Finding("hangs", "ok", "the first half")
    assert (found[1].verdict, found[1].found) == (
        "wrong",
        f"not finished within {limit_s} s while waiting for s3://***@bucket",
    )
    assert len(found) == 2


def test_an_error_of_ours_is_a_line_too() -> None:
    (line,) = lines(steps("x", lambda: checks.breaks(Setup())))
    assert line.verdict == "wrong"
    assert line.found.startswith("this check crashed: KeyError")


# ------------------------------------------------------------------------------------------------ what is installed

REQUIRES = ["torch<2.12,>=2.11", "accelerate>=1.15", "deepspeed", "facenet-pytorch==2.5.3", "mlflow>=3.17"]
REQUIRES += ['gradio<7,>=6; extra == "serve"', 'flask-wtf; extra == "server"', 'pytest; extra == "dev"']
THERE = {"torch": "2.11.0+cu130", "accelerate": "1.15.0", "deepspeed": "0.19.8", "facenet-pytorch": "2.5.3"}
THERE |= {"mlflow": "3.17.2", "gradio": "6.1.0", "flask-wtf": "1.2", "pytest": "9.0"}


def packages(tmp_path: Path, pinned: str = "", **changed: str | None) -> list[Finding]:
    there = {k: v for k, v in (THERE | {k.replace("_", "-"): v for k, v in changed.items()}).items() if v}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    (tmp_path / "constraints.txt").write_text(pinned)
    found = installed.packages(Setup(), version=version, requires=REQUIRES, constraints=tmp_path / "constraints.txt")
    return lines(found)


def test_versions_that_fit_are_one_line(tmp_path: Path) -> None:
    (line,) = packages(tmp_path, "torch==2.11.0\naccelerate==1.15.0\nabsent==1")
    assert line.verdict == "ok"
    assert "facenet-pytorch 2.5.3" in line.found


@pytest.mark.parametrize(
    ("changed", "verdict", "told"),
    [
        ({"torch": "2.12.1"}, "wrong", "torch 2.12.1 is installed, torch<2.12,>=2.11 is needed"),
        ({"facenet_pytorch": "2.6.0"}, "wrong", "facenet-pytorch 2.6.0 is installed, facenet-pytorch==2.5.3 is needed"),
        ({"deepspeed": None, "mlflow": "2.9"}, "wrong", "deepspeed is missing; mlflow 2.9 is installed, mlflow>=3.17"),
        ({"gradio": "5.0"}, "look", "[serve], for v2f serve: gradio 5.0 is installed"),
        ({"flask_wtf": None}, "ok", "[server], for an MLflow server with a login: not installed (flask-wtf)"),
    ],
)
def test_a_version_that_does_not_fit_is_named(tmp_path: Path, changed: dict[str, Any], verdict: str, told: str) -> None:
    (line,) = [line for line in packages(tmp_path, **changed) if told in line.found]
    assert line.verdict == verdict
    assert line.advice


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="constraints.txt is of Python 3.11")
def test_other_versions_than_ci_tests_are_to_be_looked_at(tmp_path: Path) -> None:
    (line,) = [line for line in packages(tmp_path, "torch==2.11.0\nmlflow==3.17.1\n") if line.verdict == "look"]
    assert "1 of 2 are not the versions that CI tests: mlflow 3.17.2 (tested: 3.17.1)" in line.found


def test_this_python_has_its_programs_or_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert not of(installed.python(Setup()), "look")
    other = tmp_path / "torchrun"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = [line.found for line in of(installed.python(Setup()), "look")]
    assert told == ["accelerate: not on the PATH", f"torchrun: the one on the PATH, {other}, is of another environment"]


# ------------------------------------------------------------------------------------------------ GPUs


def fake_torch(count: int = 1, *, available: bool = True, built: str | None = "13.0", **changed: Any) -> Any:
    """Answers as torch's do; computing happens on the CPU. ``changed``: free, major, arches, peers, result."""
    import torch

    about = SimpleNamespace(name="H100", major=changed.get("major", 9), minor=0)
    free = changed.get("free", 79 * GIB)

    def arange(length: int, device: str) -> Any:
        if changed.get("result") == "raise":
            raise RuntimeError("CUDA error: an illegal memory access\nmore")
        return torch.arange(length) + (1 if changed.get("result") == "wrong" else 0)

    return SimpleNamespace(
        version=SimpleNamespace(cuda=built),
        arange=arange,
        cuda=SimpleNamespace(
            is_available=lambda: available,
            device_count=lambda: count,
            get_device_properties=lambda number: about,
            mem_get_info=lambda number: (free, 80 * GIB),
            get_arch_list=lambda: changed.get("arches", ["sm_80", "sm_90", "compute_120"]),
            can_device_access_peer=lambda a, b: changed.get("peers", True),
        ),
    )


def gpus(torch: Any, cards: int = 1, driver: tuple[int, int] | None = (13, 0)) -> list[Finding]:
    return lines(devices.gpus(torch, [str(card) for card in range(cards)], driver))


def test_gpus_that_work_are_described() -> None:
    found = gpus(fake_torch(2))
    assert [line.verdict for line in found] == ["ok"] * 4
    assert found[0].found == "cuda:0 H100, 80 GiB, 79 free, compute capability 9.0"
    assert found[3].found == "direct access between all 2 GPUs"


@pytest.mark.parametrize(
    ("changed", "verdict", "told"),
    [
        ({"arches": ["sm_100", "sm_80", "compute_120"]}, "wrong", "this torch has sm_100 sm_80 compute_120"),
        ({"major": 7, "arches": ["sm_70"]}, "look", "it has no bfloat16"),
        ({"free": 20 * GIB}, "look", "other processes use its memory"),
        ({"result": "wrong"}, "wrong", "computes wrong"),
        ({"result": "raise"}, "wrong", "cannot compute: CUDA error: an illegal memory access"),
    ],
)
def test_a_gpu_that_does_not_work_is_named(changed: dict[str, Any], verdict: str, told: str) -> None:
    found = gpus(fake_torch(1, **changed))
    assert found[0].verdict == verdict
    assert found[0].found.endswith(told)
    assert found[0].advice


def test_code_for_a_later_gpu_comes_from_ptx() -> None:
    assert gpus(fake_torch(1, major=12, arches=["sm_90", "compute_90"]))[0].verdict == "ok"
    assert gpus(fake_torch(1, major=9, arches=["compute_120"]))[0].verdict == "wrong"


def test_gpus_that_cannot_see_each_other_are_named() -> None:
    (line,) = of(gpus(fake_torch(3, peers=False)), "look")
    assert line.found == "no direct access between the GPUs 0-1, 0-2, 1-2"


@pytest.mark.parametrize(
    ("built", "cards", "driver", "hidden", "told"),
    [
        (None, 2, (13, 0), None, "install the default torch package"),
        ("13.0", 2, (12, 8), None, "update the driver to one that supports CUDA 13; this one supports 12.8"),
        ("13.0", 2, (13, 0), "9", "CUDA_VISIBLE_DEVICES is '9'"),
        ("13.0", 2, None, None, "in a container, check that its runtime passes in GPUs"),
    ],
)
def test_gpus_that_torch_cannot_use_have_a_way_out(
    monkeypatch: pytest.MonkeyPatch, built: Any, cards: int, driver: Any, hidden: str | None, told: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_driver", lambda: None)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (line,) = gpus(fake_torch(available=False, built=built), cards, driver)
    assert line.verdict == "wrong"
    assert line.advice.startswith(told) or told in line.advice
    (none,) = gpus(fake_torch(available=False), 0, None)
    assert none.verdict == "ok"


@pytest.mark.slow
def test_an_all_reduce_that_fails_tells_its_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")  # how it is when all is well: the whole doctor, below
    found = lines(devices.all_reduce(Setup()))
    assert [(line.check, line.verdict) for line in found] == [("gloo", "wrong"), ("nccl", "ok")]
    assert "GLOO_SOCKET_IFNAME" in found[0].advice


def test_a_wrong_sum_and_a_dead_process_are_wrong() -> None:
    assert devices._reduced("gloo", [{"seconds": 0.1}, {"seconds": 0.2}], "gloo", "").found.endswith("in 200 ms")
    line = devices._reduced("nccl", [{"seconds": 0.1}, {"error": "the sum is wrong"}], "NCCL 2.28.9", "do")
    assert line == Finding(
        "nccl", "wrong", "an all-reduce of 2 processes by NCCL 2.28.9 failed: the sum is wrong", "do"
    )


# ------------------------------------------------------------------------------------------------ the recipe


@pytest.fixture
def small_recipe(run_values: Callable[..., dict[str, Any]], tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(run_values()))
    return str(path)


def test_a_recipe_says_where_to_look_and_its_data_are_read(small_recipe: str, tmp_path: Path, tiny_shards: str) -> None:
    setup = Setup(recipe=small_recipe, overrides=["tracking.uri=http://mlflow.lab", "out=s3://lab/runs/x"])
    facts, line = recipe.recipe(setup)
    assert facts == {
        "out": "s3://lab/runs/x",
        "cache": None,
        "tracking": "http://mlflow.lab",
        "store": "s3://lab/runs/x",
    }
    assert line.verdict == "ok"  # type: ignore[union-attr]
    named = Setup(recipe=small_recipe, store="my/store", tracking="http://other")
    facts, _ = recipe.recipe(named)
    assert (facts["store"], facts["tracking"]) == ("my/store", "http://other")  # type: ignore[index]
    (found,) = lines(recipe.data(load_config(small_recipe, ["data.workers=2"])))
    assert found.verdict == "ok"
    assert found.found.startswith(f"{tiny_shards}: 48 samples of train, fingerprint ")
    # 2 workers of 4 trays of 8 samples of a second's half at 16 kHz in float32, a picture of 64 px, and the raw bytes
    share = float(found.found.split("up to ")[1].split()[0]) * GIB / (2 * 4 * 8)
    assert 0.4 * 16000 * 4 + 3 * 64 * 64 < share < 2 * (0.5 * 16000 * 4 + 3 * 64 * 64)


def test_data_that_are_gone_or_damaged_are_wrong(small_recipe: str, tiny_shards: str, tmp_path: Path) -> None:
    import shutil

    (line,) = lines(recipe.data(load_config(small_recipe, ["data.path=nowhere"])))
    assert (line.verdict, "nowhere: no data set here" in line.found) == ("wrong", True)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_shards, copy)
    for shard in copy.glob("train-*.tar"):
        shard.write_bytes(shard.read_bytes()[:5000])
    (line,) = lines(recipe.data(load_config(small_recipe, [f"data.path={copy}"])))
    assert line.verdict == "wrong"
    assert line.advice == f"v2f shards verify {copy} lists all damage"


def test_weights_that_are_missing_or_others_are_wrong(tmp_path: Path) -> None:
    path = str(REPOSITORY / "launch" / "recipes" / "thesis-final.yaml")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model_ir_se50.pth").write_bytes(b"another net")
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model_ir_se50.pth\n")
    config = load_config(path, [f"system.frozen.path={folder}"])
    found = {line.found.split(" (")[0]: line for line in lines(recipe.weights("final", config))}
    assert {line.verdict for line in found.values()} == {"wrong"}
    assert "missing" in found["stylegan2-ffhq-1024"].found
    assert found["stylegan2-ffhq-1024"].advice
    (identity,) = [line for line in found.values() if "model_ir_se50.pth" in line.found]
    assert "REFUSED" in identity.found
    small = str(REPOSITORY / "launch" / "recipes" / "quickstart.yaml")
    (line,) = lines(recipe.weights("quickstart", load_config(small)))
    assert line.verdict == "ok"


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"good": (checks.good, False), "refuses": (checks.refuses, False)}
    monkeypatch.setattr(examination, "CHECKS", chosen)


def test_lines_json_and_table_say_the_same(few: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    plain = capsys.readouterr().out.splitlines()
    assert plain == [
        "ok    good: found it at runs",
        "wrong refuses: http://***@host/x: it is away; start it",
        "1 wrong",
    ]
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "wrong"
    assert found["lines"] == [
        {"check": "good", "verdict": "ok", "found": "found it at runs", "do": ""},
        {"check": "refuses", "verdict": "wrong", "found": "http://***@host/x: it is away", "do": "start it"},
    ]
    screen = io.StringIO()
    assert examination.doctor(Setup(), console=Console(file=screen, force_terminal=True, width=100)) == 1
    for word in ("good", "found it at runs", "refuses", "http://***@host/x: it is away", "start it", "1 wrong"):
        assert word in screen.getvalue()
    assert "\x1b[" in screen.getvalue()


def test_nothing_wrong_is_exit_code_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(examination, "CHECKS", {"good": (checks.good, False)})
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is wrong"


def test_a_wrong_recipe_is_one_line_and_the_rest_is_looked_at(
    few: None, tmp_path: Path, small_recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--run-config", small_recipe, "train.step=3"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "wrong recipe:" in told[0]
    assert "did you mean 'train.steps'?" in told[0]
    assert told[1] == "ok    good: found it at runs"
    assert main(["doctor", "--weights", "weights"]) == 1
    assert "--run-config" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_doctor_on_this_machine(
    small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    main(["doctor", "--json", "--run-config", small_recipe, "--store", "store", "--limit", "60"])
    text = capsys.readouterr().out
    assert SECRET not in text
    found = [Finding(*map(line.pop, ("check", "verdict", "found", "do"))) for line in json.loads(text)["lines"]]
    assert not [line for line in found if "this check crashed" in line.found or "not finished within" in line.found]
    names = {line.check for line in found}
    assert names >= {"recipe", "python", "packages", "torch", "gpu", "gloo", "nccl", "cpu", "memory", "shm", "limits"}
    assert names >= {"network", "disk", "storage", "mlflow", "data", "weights"}
    right = {"recipe", "torch", "gloo", "storage", "mlflow", "data", "weights"}
    assert not [line for line in found if line.check in right and line.verdict != "ok"]
    assert any("an all-reduce of 2 processes by gloo, 4 MiB in" in line.found for line in found)
    assert any(line.found.startswith(f"runs and scratch: {tmp_path}") for line in found)  # the recipe's, not ./runs
    assert list((tmp_path / "store").iterdir()) == []
