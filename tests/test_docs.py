"""The commands in the documents run, the files and headings that they name exist, and the example system works."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import documents
import pytest
import yaml
from documents import DOCUMENTS, REPOSITORY, Command, Sandbox, blocks, commands, simple
from systems import small, test_contract

from v2f.errors import V2FError

TEXTS = {path.relative_to(REPOSITORY).as_posix(): path.read_text() for path in DOCUMENTS}
SHOWN = {name: found for name, text in TEXTS.items() if (found := commands(name, text))}
GUIDE = "docs/adding-a-system.md"


@pytest.fixture(scope="module")
def prepared(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """What a reader already has: data sets, a run, recordings."""
    import soundfile
    from corpora import portrait, voice

    root = tmp_path_factory.mktemp("documents") / "v2f"
    root.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name in ("v2f", "tests") or path.is_file():
            (root / path.name).symlink_to(path)
        elif path.name in documents.OWN and path.name not in ("runs", "data"):
            shutil.copytree(path, root / path.name)  # a document may write there
    (root / ".venv").mkdir()
    (root / ".venv" / ".installed").touch()
    (root / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    shutil.copytree(tiny_shards, root / "data" / "quickstart")
    identities = json.loads((root / "data" / "quickstart" / "manifest.json").read_text())["identities"]
    (root / "my" / "raw").mkdir(parents=True)
    rows = ["audio,image,identity,split"]
    for person, split in enumerate(["train"] * 4 + ["valid", "test"]):
        for clip in range(2):
            wav, photo = f"raw/{person}-{clip}.wav", f"raw/{person}-{clip}.png"
            soundfile.write(root / "my" / wav, voice(person), 16000)
            portrait(person, clip).save(root / "my" / photo)
            rows.append(f"{wav},{photo},p{person},{split}")
    (root / "my" / "pairs.csv").write_text("\n".join(rows) + "\n")
    (root / "my" / "group-a.csv").write_text("\n".join([rows[0], *rows[-4:]]) + "\n")
    people = [f"{identity},{'fm'[at % 2]},{9 + at}" for at, identity in enumerate(identities)]
    (root / "my" / "people.csv").write_text("\n".join(["identity,sex,age", *people]) + "\n")
    shutil.copy(root / "my" / "raw" / "0-0.wav", root / "voice.wav")
    (root / "my-old-model").mkdir()
    recipe = yaml.safe_load((REPOSITORY / "launch" / "recipes" / "quickstart.yaml").read_text())
    (root / "RECIPE.yaml").write_text(yaml.safe_dump(recipe | {"name": "NAME"}))
    sandbox = Sandbox(root, "p1", root / "runs" / "quickstart")
    for text in (
        "v2f shards pack shards/pairs.yaml pairs.csv=my/pairs.csv out=my/shards",
        "v2f train --config launch/recipes/quickstart.yaml",
        "v2f generate runs/quickstart voice.wav -o face.png",
    ):
        assert sandbox.run(Command("prepared", 0, tuple(text.split()))) == "ran"
    return sandbox


@pytest.fixture
def sandbox(prepared: Sandbox, tmp_path: Path) -> Sandbox:
    root = tmp_path / "v2f"
    shutil.copytree(prepared.root, root, symlinks=True)
    return Sandbox(root, prepared.person, root / "runs" / "quickstart")


@pytest.fixture
def with_the_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Adds the guide's example system to the table; returns its files by name."""
    from v2f.systems import SYSTEMS

    named = documents.named_blocks(TEXTS[GUIDE])
    assert "v2f/systems/plain_face.py" in named
    assert "launch/recipes/plain-face.yaml" in named
    (tmp_path / "plain_face.py").write_text(named["v2f/systems/plain_face.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plain_face", raising=False)
    import plain_face  # type: ignore[import-not-found]

    monkeypatch.setitem(SYSTEMS, "plain_face", plain_face.PlainFace)
    smallest: dict[str, Any] = {}
    exec(named["tests/systems/small.py"], {"SMALL": smallest})  # noqa: S102 - it is our own page
    for name, values in smallest.items():
        monkeypatch.setitem(small.SMALL, name, values)
    return named


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHOWN.keys() - {"docs/full-run.md"}))  # tests/test_full_run.py follows that one
def test_every_command_of_a_document_runs_or_is_parsed(
    name: str, sandbox: Sandbox, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    for line, block in blocks(TEXTS[name], "bash"):
        text = re.sub(r"<(this repository)>", r"\1", block)
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert done.returncode == 0, f"{name}:{line}: {done.stderr}"
    if name == GUIDE:
        named = request.getfixturevalue("with_the_example")
        (sandbox.root / "launch/recipes/plain-face.yaml").write_text(named["launch/recipes/plain-face.yaml"])
    wrong = []
    for command in SHOWN[name]:
        try:
            sandbox.run(command)
        except (AssertionError, V2FError, SystemExit, subprocess.CalledProcessError, OSError) as error:
            wrong.append(f"{command}\n    {type(error).__name__}: {error}\n    {capfd.readouterr().err[-500:]}")
    print("\n".join(sandbox.told))
    assert not wrong, "\n".join(wrong)


def test_every_topic_has_a_page_with_commands_that_the_readme_links_to() -> None:
    """One page each for data, training, scaling, performance, operating, evaluating and adding a system."""
    topics = ("data", "training", "scaling", "performance", "operating", "evaluating", "adding-a-system", "weights")
    for topic in topics:
        assert f"docs/{topic}.md" in SHOWN, topic
        assert f"docs/{topic}.md" in TEXTS["README.md"], f"the README does not link to docs/{topic}.md"
    assert "docs/responsible-use.md" in TEXTS["README.md"]


def test_the_readme_names_every_folder_at_the_top_and_everything_in_the_package() -> None:
    there = [each.relative_to(REPOSITORY) for each in (REPOSITORY / "v2f").iterdir() if each.name != "__pycache__"]
    there += [Path(name) for name in documents.OWN if name != "dist" and not name.endswith(".egg-info")]
    named = [each.as_posix() + "/" * (REPOSITORY / each).is_dir() for each in there]
    assert [name for name in named if f"`{name}`" not in TEXTS["README.md"]] == []


# ------------------------------------------------------------------------------------------------ the mechanism


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("frobnicate --all", "unknown program 'frobnicate': add it to a list in tests/documents.py"),
        ("v2f shards verfy my/shards", "2"),
        ("v2f eval runs/pairs --dada my/shards", r"unknown: \['--dada'"),
        ("v2f shards pack shards/voxceleb.yaml out=s3://lab/x voxceleb.hats=3", "unknown key 'voxceleb.hats'"),
        ("v2f shards pack shards/nobody.yaml out=s3://lab/x", "there is no shards/nobody.yaml"),
        ("v2f train --config launch/recipes/thesis-final.yaml train.step=3", "unknown key 'train.step'"),
        ("torchrun --nproc_per_nodes 2 v2f/train.py --config RECIPE.yaml", "2"),
        ("torchrun --nproc_per_node 2 v2f/train.py --config RECIPE.yaml --max-time long", "long"),
        ("torchrun --nproc_per_node 2 v2f/train.py --config RECIPE.yaml --resume sometimes", "2"),
        (
            "accelerate launch --config_file launch/accelerate/none.yaml v2f/train.py --config RECIPE.yaml",
            "there is no",
        ),
        ("python bench/channels.py --datum x", "2"),
        ("python bench/figure.txt", "there is no bench/figure.txt"),
        ("make quikstart", "quikstart"),
        ("mlflow uj", "mlflow has no uj"),
        ("mlflow ui --prot 3", "No such option"),
        ("launch/preflight --nproc-per-nodes 8", "2"),
        ("launch/preflight -- --recipes x", "2"),
        ("launch/nowhere", "there is no launch/nowhere"),
        ("kubectl apply -k k8s/overlays/none", "there is no k8s/overlays/none"),
        ("cat nowhere.txt", "non-zero exit status"),
        ("rm -r /tmp/x", "outside of the folder"),
    ],
)
def test_a_command_that_would_fail_a_reader_fails_here(line: str, told: str, tmp_path: Path) -> None:
    root = tmp_path / "v2f"
    root.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name not in (".git", ".venv", "runs", "data"):
            (root / path.name).symlink_to(path)
    shutil.copy(REPOSITORY / "launch/recipes/thesis-final.yaml", root / "RECIPE.yaml")
    (root / "k8s").mkdir(exist_ok=True)
    (words,) = simple(line)
    with pytest.raises(BaseException, match=told) as caught:
        Sandbox(root, "p1", root).run(Command("here", 1, tuple(words)))
    kinds = (AssertionError, V2FError, SystemExit, subprocess.CalledProcessError)
    assert isinstance(caught.value, kinds) or "NoSuchOption" in type(caught.value).__name__


def test_a_line_of_shell_is_read_as_a_shell_reads_it() -> None:
    assert simple("set -a; . launch/nccl/tcp.env; set +a   # why") == [
        ["set", "-a"],
        [".", "launch/nccl/tcp.env"],
        ["set", "+a"],
    ]
    assert simple("A=b v2f doctor --json > doctor.json 2>&1 && echo 'a b' | wc -l") == [
        ["A=b", "v2f", "doctor", "--json"],
        ["echo", "a b"],
        ["wc", "-l"],
    ]
    assert simple("for seed in 0 1; do v2f eval runs/a-$seed; done") == [
        ["for", "seed", "in", "0", "1"],
        ["v2f", "eval", "runs/a-$seed"],
        ["done"],
    ]
    assert simple("parts=$(sbatch --parsable a.sbatch)") == [["sbatch", "--parsable", "a.sbatch"]]
    piped = commands("doc", "```bash\nmkdir x && cat > x/y <<'END'\nfrobnicate\nEND\ncurl a | wc -l\n```\n")
    assert [(each.words, each.piped) for each in piped] == [
        (("mkdir", "cat"), False),
        (("curl", "a"), False),
        (("wc", "-l"), True),
    ]
    assert piped[0].text == "mkdir x && cat > x/y <<'END'\nfrobnicate\nEND"
    text = "x\n  ```bash\n  v2f a \\\n      b   # c\n  # d\n\n  v2f e\n  ```\n```yaml\nv2f: f\n```\n"
    found = commands("doc", text)
    assert [(each.line, each.words) for each in found] == [(3, ("v2f", "a", "b")), (7, ("v2f", "e"))]


def test_each_exception_has_a_reason_and_covers_no_program_that_can_run() -> None:
    """Also, commands are found at all: otherwise the tests above would check nothing."""
    assert all(documents.ELSEWHERE.values())
    assert all(documents.PARSED.values())
    known = {*documents.ELSEWHERE, *documents.PLAIN, *documents.BUILTIN}
    counted = Counter(command.words[0] for found in SHOWN.values() for command in found)
    assert counted["v2f"] > 30
    assert not known & {"v2f", "accelerate", "torchrun", "python", "make", "mlflow"}


# ------------------------------------------------------------------------------------------------ what they name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_files_headings_verbs_and_targets_that_a_document_names_exist(path: Path) -> None:
    text = path.read_text()
    assert documents.wrong_links(path, text) == []
    assert documents.wrong_paths(text) == []
    assert documents.wrong_verbs(text) == []
    for line, block in blocks(text, "yaml"):
        assert yaml.safe_load(block), f"{path.name}:{line}"


def test_a_wrong_link_path_or_verb_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n[a](page.md#one-two-three) [b](#one-two-three) [c](#four) [d](none.md)\n")
    assert documents.wrong_links(page, page.read_text()) == ["#four", "none.md"]
    text = "`v2f/cli.py` `v2f/stores.py` `launch/accelerate/*.yaml` `launch/*.toml` `v2f evil RUN` `make nothing`"
    assert documents.wrong_paths(text) == ["v2f/stores.py", "launch/*.toml"]
    assert documents.wrong_verbs(text) == ["v2f evil RUN", "make nothing"]


# ------------------------------------------------------------------------------------------------ the example


@pytest.mark.parametrize(
    "check",
    [value for name, value in vars(test_contract).items() if name.startswith("test_") and "small" not in name],
    ids=lambda check: check.__name__,
)
def test_the_system_of_the_guide_keeps_the_contract(check: Any, with_the_example: dict[str, str], run_values) -> None:
    check(run_values, "plain_face")


@pytest.mark.slow
def test_the_system_of_the_guide_is_drawn_and_measured_like_any(
    with_the_example: dict[str, str], run_values, tmp_path: Path
) -> None:
    """And a run of it that was stopped goes on bit for bit."""
    from corpora import voice

    from v2f.config import build, override
    from v2f.evaluation.evaluate import evaluate
    from v2f.generate import generate
    from v2f.runs import checkpoint
    from v2f.runs.config import RunConfig, load_config
    from v2f.runs.run import Run
    from v2f.training.trainer import fit

    recipe = tmp_path / "plain-face.yaml"
    recipe.write_text(with_the_example["launch/recipes/plain-face.yaml"])
    assert load_config(str(recipe)).system.width == 64  # type: ignore[attr-defined]
    with pytest.raises(V2FError, match=r"unknown key 'system\.widht'; did you mean 'system\.width'"):
        load_config(str(recipe), ["system.widht=3"])
    values = run_values("plain_face", steps=4)
    straight = fit(build(RunConfig, values, "test"))
    stopped = override(values, [f"out={tmp_path}/stopped", "train.checkpoint_every=2"])
    fit(build(RunConfig, stopped, "test"))
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000004")
    resumed = fit(build(RunConfig, stopped, "test"), resume="auto")
    (one, _), (other, _) = (checkpoint.load(checkpoint.latest(f"{run}/checkpoints")) for run in (straight, resumed))
    assert one.keys() == other.keys()
    assert all((one[key] == other[key]).all() for key in one)
    import soundfile

    soundfile.write(tmp_path / "voice.wav", voice(3), 16000)
    generate(Run.open(straight), str(tmp_path / "voice.wav"), str(tmp_path / "face.png"))
    assert (tmp_path / "face.png").stat().st_size > 500
    assert evaluate(Run.open(straight))["splits"]["test"]["by"]["referee"]["lines"]["voice"]
