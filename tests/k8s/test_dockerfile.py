"""No container can be built where the tests run; what the Dockerfile promises can be read all the same."""

import fnmatch
import re
from pathlib import Path

import pytest
from rendered import REPOSITORY, containers, pods, world
from rules import runs_v2f, telltale

FILE = REPOSITORY / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """INSTRUCTION and the rest of its line; continued lines are one."""
    text = re.sub(r"\\\n\s*", "", FILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def problems(found: list[tuple[str, str]]) -> list[str]:
    """What is wrong with the instructions of a Dockerfile."""
    wrong = []
    stages = [rest.split() for name, rest in found if name == "FROM"]
    names = [words[2] for words in stages if words[1:2] == ["AS"]]
    for image, *_ in stages:
        if not re.fullmatch(r"python:3\.11\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", image):
            wrong.append(f"{image} is not pinned to a version of the Python that constraints.txt is for")
    if len(stages) != 2 or len({image for image, *_ in stages}) != 1:
        wrong.append("it is not built in one stage and run in another of the same base")
    last = found[max(number for number, (name, _) in enumerate(found) if name == "FROM") :]
    users = [rest for name, rest in last if name == "USER"]
    if users[-1:] != ["10001:10001"] or [name for name, _ in last if name in ("RUN", "COPY", "ADD")] == []:
        wrong.append("it does not end as the user 10001")
    elif max(n for n, (name, _) in enumerate(last) if name == "USER") < max(
        n for n, (name, _) in enumerate(last) if name in ("RUN", "COPY")
    ):
        wrong.append("files are made after the user was changed: the user would own them")
    installs = [rest for name, rest in found if name == "RUN" and "pip install" in rest]
    if not installs or any("-c constraints.txt" not in rest or "dev" in rest for rest in installs):
        wrong.append("something is installed at any version, or for development")
    if any("pip install" in rest for name, rest in last if name == "RUN"):
        wrong.append("it installs in the stage that runs")
    for name, rest in found:
        if name == "ADD" or re.search(r"curl|wget|apt-get|sudo|chmod 777", rest):
            wrong.append(f"{name} {rest}: fetches, or more than the image needs")
        if name == "COPY":
            sources = rest.split()[:-1]
            if sources[0].startswith("--from="):
                if sources[0].removeprefix("--from=") not in names:
                    wrong.append(f"COPY {rest}: there is no such stage")
            else:
                wrong += [
                    f"COPY {source}: is not there, or left out of the context" for source in sources if not sent(source)
                ]
        if (name in ("ENV", "ARG") and re.search(r"(?i)password|secret|token|_key\b", rest)) or telltale(rest):
            wrong.append(f"{name} {rest}: a secret?")
        if name in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
            wrong.append(f"{name} {rest}: a shell would be the first process, and keep signals to itself")
    if ("WORKDIR", "/app") not in last:
        wrong.append("the manifests' paths are relative to /app")
    return wrong


def sent(source: str) -> bool:
    """Whether a path is in the repository, and .dockerignore lets it through."""
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    let = False
    for line in lines:
        if fnmatch.fnmatch(source.split("/")[0], line.lstrip("!")):
            let = line.startswith("!")
    return let and (REPOSITORY / source).exists()


def test_it_keeps_its_promises():
    assert problems(instructions()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("USER 10001:10001", "USER root"),
        ("USER 10001:10001", "EXPOSE 5000"),
        ("python:3.11.14-slim-bookworm", "python:latest"),
        ("python:3.11.14-slim-bookworm", "python:3.11"),
        (" -c constraints.txt", ""),
        ("[serve,server]", "[dev]"),
        ("COPY shards shards", "COPY shard shards"),
        ("COPY shards shards", "COPY tests tests"),
        ("COPY shards shards", "ADD https://example.com/shards shards"),
        ("--from=build", "--from=other"),
        ('CMD ["v2f", "--help"]', "CMD v2f --help"),
        ("ENV NVIDIA_DRIVER", "ENV AWS_SECRET_ACCESS_KEY=x NVIDIA_DRIVER"),
        ("WORKDIR /app", "WORKDIR /srv"),
    ],
)
def test_a_broken_one_is_noticed(monkeypatch, tmp_path, old, new):
    text = FILE.read_text()
    assert old in text
    path = tmp_path / "Dockerfile"
    path.write_text(text.replace(old, new))
    monkeypatch.setattr("test_dockerfile.FILE", path)
    assert problems(instructions())


def test_nothing_else_gets_into_the_image():
    """The context is what is named, so that no data, run or key goes along."""
    for name in (".git", "data", "runs", "weights", "tests", "docs", ".env", "id_rsa", "k8s"):
        assert not sent(name)
    copied = {
        word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    }
    let = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let == {source.split("/")[0] for source in copied}


def test_the_manifests_find_in_the_image_what_they_start():
    """Files by paths in /app, programs by the environment's scripts; the pods run as the image's user."""
    scripts = {"v2f", "python"}
    for found in world("overlays/cpu"):
        for container in containers(found):
            if runs_v2f(container):
                program = container["command"][0]
                there = REPOSITORY / program
                assert program in scripts or (there.is_file() and there.stat().st_mode & 0o111)
                assert all(pod["securityContext"]["runAsUser"] == 10001 for pod in pods(found))
    assert "v2f" in (REPOSITORY / "pyproject.toml").read_text().partition("[project.scripts]")[2].splitlines()[1]
    assert Path(REPOSITORY / "mlflow" / "serve").read_text().startswith("#!/bin/sh\n")
