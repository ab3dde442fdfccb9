"""Run the commands in the documents, in a folder that looks like a checkout with small data sets and small runs.

    *.md --commands()--> Command --Sandbox.run()--> "ran" | "parsed: why no more" | "elsewhere: why not here"

Each command in a ```bash block has one of three outcomes; a command that fits none of them fails:

    ran         for real, in this process: packing, training as under the launchers, ... reduced by TRAIN and SMALLER
    parsed      by the real program, including its last option: PARSED says why it is not run, and which test runs it
    elsewhere   it needs a cluster, the internet or a person: ELSEWHERE says which; the files that it names must exist

The folder contains the reader's placeholders (ID, RECIPE.yaml, runs/NAME, my/pairs.csv, voice.wav).
"""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
_MADE_LATER = ("data", "runs", "weights", "build")  # by someone working here; not part of the repository
OWN = [p.name for p in REPOSITORY.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in _MADE_LATER]

TRAIN = ["train.steps=2", "train.threads=1", "train.log_every=1", "train.validate_samples=6", "tracking.uri=null"]
TRAIN += ["train.precision=fp32", "data.workers=0", "data.batch=8", "data.window=8", "data.partitions=4"]
SYNTHETIC = ["train.people=24", "valid.people=6", "test.people=6", "seen.people=6", "seconds=0.5"]
SYNTHETIC += ["labels=[glasses,hair,age]"]  # as the data set of every training test
_WORLDS = [f"shards/{name}.yaml" for name in ("quickstart", "synthetic", "speaker-synthetic", "labelled-faces")]
SHAPES = ["train=64", "valid=16", "test=24"]
THINGS = ["train.things=32", "valid.things=8", "test.things=16", "seen.things=8"]
SMALLER: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "shards pack": lambda words: [
        "workers=1",
        *(f"synthetic.{each}" for each in SYNTHETIC if words[0] in _WORLDS),
        *(f"shapes.{each}" for each in SHAPES if words[0] == "shards/shapes.yaml"),
        *(f"things.{each}" for each in THINGS if words[0] == "shards/sounding-things.yaml"),
        *(["pairs.size=64"] if words[0] == "shards/pairs.yaml" else []),
    ],
    "shards precompute": lambda words: ["workers=1"],
}
CODES = {"weights": (0, 1), "weights table": (0, 1)}  # 1: weights are missing, which is what it reports

Words = Sequence[str]


def _foreign(words: Words) -> str | None:
    """Why a command cannot run here, judged by what it names; None if it can."""
    text = " ".join(words)
    if "s3://" in text or "http://" in text or "https://" in text:
        return "no such store or server; tests/storage/test_swift.py, tests/tracking/test_tracking_server.py"
    if re.search(r"shards/(voxceleb2?|avspeech|vgg-sound|esc50)\.yaml", text):
        return "no such corpus; tests/prepare/test_voxceleb.py, test_avspeech.py, test_listings.py"
    if "sounds.yaml" in words:
        return "a pipeline of four trained runs; tests/test_pipeline.py, tests/web/test_pipelines.py"
    if re.search(r"psp|ir_se50|resnet50|facenet|dlib|lpips|unispeech_sat|wavlm|thesis-|NAME\.yaml", text):
        return "third-party weights; tests/weights, tests/systems/test_thesis.py"
    return None


PARSED = {
    "weights convert": "needs a pickle from NVIDIA; tests/weights/test_nvidia.py",
    "weights mirror": "third-party weights; tests/weights/test_weights_commands.py",
    "serve": "serves until it is stopped; tests/web",
    "register": "needs a tracking server; tests/web, tests/tracking/test_tracking_server.py",
    "track": "needs a tracking server; tests/tracking/test_tracking.py",
    "doctor": "checks this machine; tests/doctor/test_doctor.py",
}
ELSEWHERE = {
    "git": "the internet",
    "pip": "the internet",
    "curl": "a server",
    "ssh": "another machine",
    "energon": "Megatron-Energon; tests/prepare/test_energon.py runs it where it is installed",
    "aws": "a store",
    "docker": "a daemon of containers",
    "kubectl": "a cluster; tests/k8s renders and runs what these commands apply",
    "helm": "a cluster",
    **dict.fromkeys(
        ("sbatch", "srun", "squeue", "sinfo", "sacct", "scancel", "scontrol"), "Slurm; tests/test_slurm.py runs it"
    ),
    **dict.fromkeys(("psql", "createdb", "createuser", "initdb", "pg_dump", "pg_ctl"), "PostgreSQL"),
    **dict.fromkeys(("pgrep", "kill", "nvidia-smi", "systemctl", "journalctl", "ulimit"), "this very machine"),
    **dict.fromkeys(("jq", "openssl", "chromium", "xdg-open", "nano", "vi"), "a person"),
}
PLAIN = (
    "base64",
    "cat",
    "cp",
    "echo",
    "grep",
    "head",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "printf",
    "rm",
    "tail",
    "touch",
    "wc",
    "chmod",
)
BUILTIN = ("cd", "export", "set", "source", ".", "umask", "true", "done", "fi", "wait", "for", "unset")
MADE = (".venv/bin/activate",)  # by make


@dataclass(frozen=True)
class Command:
    """One simple command: its place and words; whether it reads from a pipe; its text if it has a here-document."""

    document: str
    line: int
    words: tuple[str, ...]
    piped: bool = False
    text: str = ""

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {shlex.join(self.words)}"


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of a language: the line number of the first content line, and the content without indentation."""
    found = []
    for match in re.finditer(rf"^( *)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        indent = len(match[1])
        lines = [line[indent:] for line in match[2].splitlines()]
        found.append((text[: match.start(2)].count("\n") + 1, "\n".join(lines) + "\n"))
    return found


def commands(name: str, text: str) -> list[Command]:
    """The simple commands in a document's ```bash blocks, in order."""
    found: list[Command] = []
    for first, block in blocks(text, "bash"):
        lines = enumerate(block.splitlines(), first)
        for number, line in lines:
            while line.endswith("\\"):
                line = line[:-1] + next(lines)[1]
            ends = re.search(r"<<-?\s*['\"]?(\w+)", line)
            if ends is None:
                found += [Command(name, number, tuple(words), piped) for words, piped in _simple(line)]
                continue
            here = [line]
            while here[-1].strip() != ends[1]:
                here.append(next(lines)[1])
            programs = [words[0] for words, _ in _simple(line[: ends.start()])]
            found.append(Command(name, number, tuple(programs), text="\n".join(here)))
    return found


def simple(line: str) -> list[list[str]]:
    """The simple commands in a line of shell, without comments and redirections."""
    return [words for words, _ in _simple(line)]


def _simple(line: str) -> list[tuple[list[str], bool]]:
    """Like :func:`simple`, each with whether it reads from a pipe."""
    line = re.sub(r"^\s*\w+=\$\((.*)\)\s*$", r"\1", line)  # the command in a command substitution
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[tuple[list[str], bool]] = [([], False)]
    skip = False
    for word in lexer:
        words = found[-1][0]
        if word.startswith("#"):
            break
        if re.fullmatch(r"[;&|]+", word):
            found.append(([], word == "|"))
        elif re.fullmatch(r"[<>]+&?", word):
            skip = True
            if words and words[-1] in ("1", "2"):  # the file descriptor of a redirection
                words.pop()
        elif skip:
            skip = False
        elif not words and word in ("do", "then", "if", "while", "else", "!", "time", "exec", "sudo"):
            continue
        else:
            words.append(word)
    return [(words, piped) for words, piped in found if words]


class _ParsedError(BaseException):
    """Raised when a program has parsed its arguments, to stop it there."""


@contextlib.contextmanager
def _only_parsing() -> Iterator[None]:
    """Stop every program as soon as it has parsed its arguments."""
    real = ArgumentParser.parse_args

    def parse(parser: ArgumentParser, arguments: Any = None, namespace: Any = None) -> Any:
        real(parser, arguments, namespace)
        raise _ParsedError

    with mock.patch.object(ArgumentParser, "parse_args", parse), contextlib.suppress(_ParsedError):
        yield


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@dataclass
class Sandbox:
    """A folder with everything the documents name. ``person`` replaces ID; ``run_folder`` is a tiny run to copy."""

    root: Path
    person: str
    run_folder: Path
    told: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    _fate: str = ""

    def run(self, command: Command) -> str:
        """The outcome of a command; AssertionError, or the program's own error, if the command is wrong."""
        words = [self._meant(word) for word in command.words]
        environment, begun = {}, time.process_time()
        while words and re.match(r"[A-Za-z_]\w*=", words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        with _at(self.root), mock.patch.dict(os.environ, environment):
            self._named_files_exist(words)
            if command.text:
                assert set(words) <= {*PLAIN, *BUILTIN}, f"a here-document for {words}"
                fate = self._shell(command.text, words)
            elif command.piped and not self._fate.startswith("ran"):
                fate = "elsewhere: nothing is piped to it"
            else:
                fate = self._run(words) if words else "ran"
        self._fate = fate
        self.told.append(f"{fate.partition(':')[0]:9} {time.process_time() - begun:4.1f} s {command}")
        return fate

    def _meant(self, word: str) -> str:
        if word == "OLD_FINGERPRINT":
            return str(json.loads((self.run_folder / "run.json").read_text())["fingerprint"])
        for name, value in {"PWD": str(self.root), **self.variables}.items():
            word = re.sub(rf"\$(?:{name}\b|{{{name}}})", value, word)
        return self.person if word == "ID" else word

    def _named_files_exist(self, words: Words) -> None:
        """Check that the files of the repository that a command names exist, even if the command does not run."""
        for word in words:
            path = re.sub(r"^(--?[\w-]+=|[\w.]+=)", "", word).removeprefix("./")
            inside = path.split("/")[0] in (*OWN, ".venv") and "/" in path and "*" not in path and "=" not in path
            if inside and path not in MADE and not path.startswith(("runs/", "data/", "my/")):
                assert Path(path).exists(), f"there is no {path}"

    def _run(self, words: Words) -> str:
        program, rest = words[0].removeprefix(".venv/bin/"), list(words[1:])
        if program == "v2f":
            return self._v2f(rest)
        if program in ("accelerate", "torchrun"):
            return self._launch(program, rest)
        if program in ("python", "python3"):
            return self._python(rest)
        if program == "make":
            return self._make(rest)
        if program == "mlflow":
            return self._mlflow(rest)
        if program == "for":  # run the body once, with the first value
            self.variables[rest[0]] = rest[2]
        if program in BUILTIN:
            return "ran"  # the syntax is checked elsewhere, and the files that it names exist
        if program == "tail" and {"-f", "-F"} & set(rest):
            return "elsewhere: it runs until a person stops it"
        if program in PLAIN:
            for word in rest:
                self._provide(word)
            return self._shell(_joined(words), words)
        if program in ELSEWHERE:
            return f"elsewhere: {ELSEWHERE[program]}"
        if "/" in program:
            return self._script(program, rest)
        raise AssertionError(f"unknown program {program!r}: add it to a list in tests/documents.py")

    def _shell(self, text: str, words: Words) -> str:
        """Run plain programs in a shell, inside the folder only."""
        assert not any(word.startswith(("/", "~")) or ".." in word for word in words), "outside of the folder"
        subprocess.run(["bash", "-c", text], check=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
        return "ran"

    # ------------------------------------------------------------------------------------------------ v2f itself

    def _v2f(self, words: list[str]) -> str:
        from v2f.cli import _parser, main

        if words[0] == "exec":
            return self._run(words[1:])
        args, others = _parser().parse_known_args(words)
        assert all("=" in each and not each.startswith("-") for each in others), f"unknown: {others}"
        verb = next((two for two in (" ".join(words[:2]),) if two in (*SMALLER, *PARSED) or two in _GROUPS), words[0])
        if verb == "train":
            return self._train(words[1:])
        rest = words[len(verb.split()) :]
        why = PARSED.get(verb) or _foreign(words)
        if why is not None:
            self._configured(verb, args, [*rest, *others])
            return f"parsed: {why}"
        for word in rest:
            self._provide(word)
        more = SMALLER[verb](rest) if verb in SMALLER else []
        code = main([*words, *more])
        assert code in CODES.get(verb, (0,)), f"exited with {code}"
        return "ran"

    def _configured(self, verb: str, args: Any, words: Words) -> None:
        """Check the configuration that a command names, although the command is not run."""
        from v2f.prepare.pack import load_recipe
        from v2f.prepare.precompute import load
        from v2f.runs.config import load_config

        overrides = [word for word in words if "=" in word and not word.startswith("-")]
        if verb in ("shards pack", "shards finalize"):
            load_recipe(args.recipe, overrides)
        elif verb == "shards precompute":
            load(overrides, args.recipe, args.voice)
        elif verb == "doctor" and args.run_config:
            load_config(args.run_config, overrides)

    def _provide(self, word: str) -> None:
        """Create what the reader would have and the command reads: a run, a recording."""
        path = Path(word)
        if re.fullmatch(r"runs/[\w.-]+", word) and not path.exists():
            shutil.copytree(self.run_folder, path)
        elif word.endswith((".wav", ".m4a", ".flac")) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy("voice.wav", path)

    # ------------------------------------------------------------------------------------------------ programs

    def _launch(self, program: str, words: list[str]) -> str:
        if program == "torchrun":
            from torch.distributed.run import get_args_parser

            args = get_args_parser().parse_args(words)
        else:
            from accelerate.commands.launch import _validate_launch_command, launch_command_parser

            assert words[0] == "launch"
            args = launch_command_parser().parse_args(words[1:])
            _validate_launch_command(args)  # reads the file
        script, rest = args.training_script, list(args.training_script_args)
        if script == "...":
            return "parsed: an abbreviation"
        assert script == ("v2f.train" if args.module else "v2f/train.py"), script
        return self._train(rest)

    def _train(self, words: list[str]) -> str:
        """As `v2f/train.py` with these arguments, but small, and in this process."""
        from v2f.runs.config import load_config
        from v2f.training import command as train
        from v2f.training import stopping
        from v2f.training.trainer import fit

        parser = ArgumentParser()
        train.arguments(parser)
        args, others = parser.parse_known_args(words)
        assert all("=" in each and not each.startswith("-") for each in others), f"unknown: {others}"
        overrides = [*args.overrides, *others]
        if args.max_time is not None:
            stopping.seconds_of(args.max_time)
        config = load_config(args.config, overrides)  # as written in the document
        system = config.system
        if any(net.published.installed() is None for net in system.requirements().user_weights.values()):
            return "parsed: weights that are not ours; tests/systems/test_thesis.py"
        if "://" in config.folder or "://" in config.data.home:
            return "parsed: no such store; tests/storage/test_swift.py"
        small = ["system.seconds=0.5"] if hasattr(system, "seconds") else []
        small += ["system.contrast.group=8"] if hasattr(system, "contrast") else []
        fit(
            load_config(args.config, [*overrides, *TRAIN, *small]), resume=args.resume, allow_changes=args.allow_changes
        )
        return "ran"

    def _python(self, words: list[str]) -> str:
        if words[0] == "-c":
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return "ran"
        if words[:2] == ["-m", "pytest"]:
            return "elsewhere: it would run these tests"
        with _only_parsing(), mock.patch.object(sys, "argv", words[1:] if words[0] == "-m" else words):
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                with mock.patch.object(sys, "path", [str(Path(words[0]).resolve().parent), *sys.path]):
                    runpy.run_path(words[0], run_name="__main__")
            raise AssertionError(f"{words} parses no arguments")
        return "parsed: minutes of work"

    def _make(self, words: list[str]) -> str:
        """Run the project's own commands of a target."""
        fates = set()
        for target in [word for word in words if "=" not in word] or ["quickstart"]:
            done = subprocess.run(["make", "-n", target], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            for line in done.stdout.splitlines():
                for each in simple(line):
                    program = each[0].removeprefix(".venv/bin/")
                    if target in ("quickstart", "synthetic") and program in ("v2f", "accelerate"):
                        if program == "accelerate":  # in its own run, not in the tiny one that others read
                            each = [*each, f"out=runs/made-{target}"]
                        mine = [word.replace(f"runs/{target}", f"runs/made-{target}") for word in each[1:]]
                        fates.add(self._run([program, *mine]).partition(":")[0])
        return "ran" if fates else "parsed: lint, the suite, or minutes of work"

    def _mlflow(self, words: list[str]) -> str:
        import click
        from mlflow.cli import cli

        command: Any = cli
        rest = list(words)
        while isinstance(command, click.Group):
            context = click.Context(command)
            command = command.get_command(context, rest[0]) if rest else None
            assert command is not None, f"mlflow has no {' '.join(words)}"
            del rest[0]
        command.make_context("mlflow", rest)
        return "parsed: it serves until it is stopped, or changes a server"

    def _script(self, program: str, words: list[str]) -> str:
        path = Path(program)
        assert path.is_file(), f"there is no {program}"
        assert os.access(path, os.X_OK), f"{program} cannot be executed"
        subprocess.run(["bash", "-n", program], check=True, timeout=60)
        if path.name == "preflight":
            own = words.index("--") if "--" in words else len(words)
            from torch.distributed.run import get_args_parser

            get_args_parser().parse_args([*words[:own], "-m", "v2f.preflight"])
            return self._python(["-m", "v2f.preflight", *words[own + 1 :]])
        return "parsed: it is a launcher with tests of its own"


_GROUPS = [
    f"shards {verb}" for verb in ("pack", "finalize", "index", "verify", "stats", "show", "precompute", "remove")
]
_GROUPS += [f"checkpoint {verb}" for verb in ("show", "verify", "export")] + ["weights table"]


def _joined(words: Words) -> str:
    """Words joined for a shell, which still expands words with a star."""
    return " ".join(word if "*" in word else shlex.quote(word) for word in words)


# ------------------------------------------------------------------------------------------------ what is named

_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def _prose(text: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub generates them."""
    plain = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = [
        re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def wrong_links(path: Path, text: str) -> list[str]:
    """Links in a document to files and headings that do not exist."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(text if there == path else there.read_text())):
            wrong.append(target)
    return wrong


def named_blocks(text: str) -> dict[str, str]:
    """The files that a document contains: a line with the name in `code` and a colon, followed by a block."""
    found = re.findall(r"`([\w./-]+)`[^`]*:\n```(?:python|yaml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return dict(found)


def wrong_paths(text: str) -> list[str]:
    """Files of the repository that a document names in `code`, but that exist neither there nor in the document."""
    wrong, there = [], {*MADE, *named_blocks(text)}
    for code in re.findall(
        r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    ):
        for word in code.split():
            path = re.sub(r"^[\w.]+=", "", word).rstrip(",;:.").partition("#")[0]
            # A path with a known first folder; the reader fills in capitals.
            if path.split("/")[0] not in OWN or "/" not in path or re.search(r"[A-Z]{2,}|[<>{}$]|\.\.\.", path):
                continue
            if path not in there and not list(REPOSITORY.glob(path.rstrip("/"))):
                wrong.append(path)
    return wrong


def wrong_verbs(text: str) -> list[str]:
    """Verbs of v2f and targets of make that a document names in `code`, but that do not exist."""
    from v2f.cli import _parser

    verbs = {name for action in _parser()._subparsers._group_actions for name in action.choices}  # type: ignore[union-attr]
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    found = []
    for code in _CODE.findall(_prose(text)):
        words = code.split()
        if len(words) > 1 and words[0] == "v2f" and re.fullmatch(r"[a-z-]+", words[1]) and words[1] not in verbs:
            found.append(code)
        if len(words) > 1 and words[0] == "make" and re.fullmatch(r"[a-z-]+", words[1]) and words[1] not in targets:
            found.append(code)
    return found
