"""What a command says reaches who reads it, whatever the terminal can print, and however early the reader leaves."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from corpora import voice
from PIL import Image

from v2f.errors import UNREAD, V2FError, entry_point, guarded

REPOSITORY = Path(__file__).resolve().parent.parent


def unread(*command: str) -> tuple[int, bytes]:
    """The exit code and stderr of a command whose stdout nobody reads."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    where = {"cwd": REPOSITORY, "env": environment}
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **where
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        return process.wait(), process.stderr.read()


@pytest.mark.parametrize(
    "command",
    [["-m", "v2f", "--help"], ["-m", "v2f", "shards", "pack", "--help"], ["v2f/train.py", "--help"]],
    ids=" ".join,
)
def test_a_command_that_nobody_reads_ends_quietly(command: list[str]) -> None:
    assert unread(*command) == (UNREAD, b"")


def by_rich() -> None:
    from rich.console import Console

    Console().print("a table")


def by_print() -> None:
    print("a line", flush=True)


def buffered() -> None:
    print("a line")


@pytest.mark.parametrize("say", [by_rich, by_print, buffered])
def test_whatever_writes_the_end_is_the_same(say: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert entry_point(lambda: guarded(say, debug=False))() == UNREAD
        print("more")
        stream.flush()  # as Python does when it ends


def test_a_pipe_that_broke_elsewhere_is_no_quiet_end(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise BrokenPipeError("a worker's")

    assert entry_point(lambda: guarded(command, debug=False))() == 1
    assert "unexpected BrokenPipeError: a worker's" in capsys.readouterr().err


def test_the_exit_code_survives_a_stderr_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise V2FError("wrong")

    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            assert guarded(command, debug=False, error_code=78) == 78
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_an_output_that_cannot_be_written_is_one_line() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "v2f", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=REPOSITORY, env=environment, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "v2f: cannot write to stdout (No space left on device); free space, or redirect it elsewhere\n"
    )


@pytest.mark.parametrize("locale", [{}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["output", "all"])
def test_a_name_that_the_terminal_cannot_print_is_escaped(tmp_path: Path, locale: dict[str, str]) -> None:
    """Also where Python takes everything for ASCII: then the names of files and of people on the command line, too."""
    soundfile.write(tmp_path / "\u00f1.wav", voice(1), 16000)
    Image.new("RGB", (40, 40)).save(tmp_path / "ok.png")
    rows = ["audio,image,identity", "\u00f1.wav,ok.png,Jos\u00e9", "ni\u00f1o.wav,ok.png,Ana"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
    command = ["pack", str(REPOSITORY / "shards" / "pairs.yaml"), "workers=1", f"pairs.csv={tmp_path}/pairs.csv"]
    command += [f"out={tmp_path}/d", "pairs.align=none", "pairs.size=32"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"} | locale

    def run(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
        whole = [sys.executable, "-m", "v2f", "shards", *arguments]
        return subprocess.run(whole, capture_output=True, env=environment, cwd=REPOSITORY)

    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert rb"left out: line 3 (ni\xf1o.wav, ok.png): audio is missing" in done.stdout
    assert b"1 samples of 1 people" in done.stdout
    assert run("verify", f"{tmp_path}/d", "--absent", "Jos\u00e9").returncode == 1


def test_python_m_v2f_is_v2f() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "v2f", "shards", "verify", "nowhere"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("v2f: nowhere: no data set here")
    usage = subprocess.run([sys.executable, "-m", "v2f", "--help"], capture_output=True, text=True, cwd=REPOSITORY)
    assert usage.stdout.startswith("usage: v2f [-h]")
