"""The command line: the table of the verbs of ``v2f``, and how one of them runs.

A verb's options and the function that runs it are in the ``commands`` module of its package, which is imported only
when a command line names the verb: ``v2f --help`` waits for none of them, and no help waits for torch. An error
is one line and a non-zero exit code.
"""

import argparse
import gc
import os
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v2f import __version__
from v2f.errors import V2FError, entry_point, guarded
from v2f.options import PIPELINE, positive, whole
from v2f.storage.address import argument
from v2f.training import command as train_command

_NAME = "such as quickstart, for that run and its data; or a path from the list"


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 done, 1 a mistake that the message explains, 2 wrong usage, 130 interrupted, 141 nobody reads
    the output; for ``train`` and ``exec`` see :mod:`v2f.training.stopping`."""
    args = train_command.parsed(_parser(), arguments)
    return guarded(lambda: args.run(args), debug=args.debug)


@dataclass(frozen=True)
class Verb:
    """``help``: one line. ``options``: ``module:function``, which adds the verb's options to its parser and sets the
    default ``run``, the function that runs it; empty for a verb that only groups others."""

    help: str
    options: str = ""


VERBS = {
    "train": Verb("train a system in one process, as v2f/train.py does", "v2f.training.command:arguments"),
    "exec": Verb(
        "run a launcher: stopping it saves a checkpoint, and its exit code says why it ended",
        "v2f.training.command:add_exec",
    ),
    "eval": Verb("evaluate a run on seen and unseen people; writes its eval.json", "v2f.evaluation.commands:add_eval"),
    "generate": Verb("generate what a run makes of a voice, a photo, a video or a label", "v2f.cli:_add_generate"),
    "embed": Verb(
        "embed every recording and photo of a folder with a run's networks, as arrays",
        "v2f.evaluation.commands:add_embed",
    ),
    "serve": Verb(
        "serve a web page that draws a face for your voice and says how sure it is", "v2f.web.commands:add_serve"
    ),
    "report": Verb(
        "write a run's report page: reference photos beside faces, curves, retrieval", "v2f.web.commands:add_report"
    ),
    "compare": Verb(
        "compare runs: what differs, and which differences are larger than noise", "v2f.web.commands:add_compare"
    ),
    "track": Verb("send MLflow what it has not received of a finished run", "v2f.runs.commands:add_track"),
    "register": Verb("register a run as a model in MLflow's model registry", "v2f.web.commands:add_register"),
    "checkpoint": Verb("list, verify and export a run's checkpoints"),
    "checkpoint show": Verb(
        "list a run's checkpoints, or what one of them contains", "v2f.runs.commands:add_checkpoint_show"
    ),
    "checkpoint verify": Verb(
        "verify every byte, name and number of the checkpoints", "v2f.runs.commands:add_checkpoint_verify"
    ),
    "checkpoint export": Verb(
        "export one checkpoint for inference, with a model card and a data card",
        "v2f.runs.commands:add_checkpoint_export",
    ),
    "shards": Verb("make and maintain data sets"),
    "shards pack": Verb(
        "pack pairs of voice and face into WebDataset shards with a manifest", "v2f.prepare.commands:add_pack"
    ),
    "shards finalize": Verb(
        "check the parts of a recipe and commit them as one data set", "v2f.prepare.commands:add_finalize"
    ),
    "shards index": Verb(
        "make a data set of existing WebDataset tars, without copying them", "v2f.prepare.commands:add_index"
    ),
    "shards verify": Verb(
        "verify every byte, the schema and the splits of a data set", "v2f.prepare.commands:add_verify"
    ),
    "shards stats": Verb(
        "measure hours, people, lengths and sizes, and write a page with plots", "v2f.web.commands:add_stats"
    ),
    "shards show": Verb("write a contact sheet: photos and audio players of some samples", "v2f.web.commands:add_show"),
    "shards precompute": Verb(
        "copy a data set and add what frozen nets compute from its photos", "v2f.prepare.commands:add_precompute"
    ),
    "shards film": Verb("write a short video of a synthetic dog, cat, bell or engine", "v2f.prepare.commands:add_film"),
    "shards remove": Verb(
        "remove people who withdrew their consent from a data set", "v2f.prepare.commands:add_remove"
    ),
    "weights": Verb(
        "list the weights that the recipes' frozen nets need, and where to get them", "v2f.runs.commands:add_weights"
    ),
    "weights table": Verb("list the weights of chosen recipes", "v2f.runs.commands:add_weights_table"),
    "weights convert": Verb(
        "convert one of NVIDIA's StyleGAN2 pickles to safetensors, without executing it",
        "v2f.runs.commands:add_weights_convert",
    ),
    "weights mirror": Verb(
        "collect the weights that recipes need in one place, for a site without internet access",
        "v2f.runs.commands:add_weights_mirror",
    ),
    "recipes": Verb("list the recipes that ship with v2f, show or copy them", "v2f.cli:_add_recipes"),
    "recipes show": Verb("print a recipe that ships with v2f", "v2f.cli:_add_recipes_show"),
    "recipes copy": Verb("copy a recipe that ships with v2f; overwrites nothing", "v2f.cli:_add_recipes_copy"),
    "doctor": Verb(
        "check that this machine has what a run needs, one verdict per line", "v2f.doctor.commands:add_doctor"
    ),
}
"""In the order of the help. A name of two words is a verb of the group that its first word names."""


class _VerbParser(argparse.ArgumentParser):
    """The parser of one verb, which gets its options when a command line names the verb."""

    options = ""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        if self.options:
            add, self.options = pkgutil.resolve_name(self.options), ""
            add(self)
        return super().parse_known_args(*args, **kwargs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="v2f", description="Train systems that turn a voice into a face.")
    parser.add_argument("--version", action="version", version=f"v2f {__version__}")
    top = parser.add_subparsers(title="verbs", required=True, metavar="VERB", parser_class=_VerbParser)
    groups: dict[str, Any] = {}
    for name, verb in VERBS.items():
        group, _, last = name.rpartition(" ")
        description = f"{verb.help[0].upper()}{verb.help[1:]}."
        own = (groups[group] if group else top).add_parser(last, help=verb.help, description=description)
        if verb.options:
            own.add_argument("--debug", action="store_true", help="show the traceback of an error")
            own.options = verb.options
        if any(other.startswith(f"{name} ") for other in VERBS):
            groups[name] = own.add_subparsers(title="verbs", required=not verb.options, metavar="VERB")
    return parser


# ------------------------------------------------------------- verbs of modules that are not in a package


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=argument, metavar="RUN", help=PIPELINE)
    parser.add_argument(
        "recording", nargs="?", type=argument, metavar="voice.wav", help="a recording, as libsndfile or FFmpeg reads it"
    )
    parser.add_argument("--voice", type=argument, metavar="FILE", help="the recording, as an option")
    parser.add_argument(
        "--photo", type=argument, metavar="FILE", help="a photo, for a run or pipeline that takes or restyles one"
    )
    parser.add_argument("--video", type=argument, metavar="FILE", help="a video, for a run or pipeline that takes one")
    parser.add_argument("--label", metavar="NAME", help="a label, for a run or pipeline that takes one")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the random numbers; default: 0")
    parser.add_argument(
        "-o",
        "--output",
        type=argument,
        required=True,
        metavar="out.png",
        help="where to write: .png, .wav, .json, or a video with its sound, such as .mp4",
    )
    parser.add_argument(
        "--size",
        type=positive,
        metavar="PX",
        help="side of a face, at most the generator's; default: as in training",
    )
    parser.add_argument(
        "--walk",
        type=positive,
        metavar="N",
        help="a row of N pictures, from the code of the seed or of the photo to that of the next seed",
    )
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> None:
    # Set before torch reads it: otherwise its threads waste seconds of CPU waiting between the small operations.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from v2f.generate import generate
    from v2f.pipeline import opened

    if args.recording is not None and args.voice is not None:
        raise V2FError(f"two recordings are given, {args.recording} and {args.voice}; name one")
    generate(
        opened(args.run_path),
        args.recording if args.voice is None else args.voice,
        args.output,
        photo=args.photo,
        video=args.video,
        label=args.label,
        seed=args.seed,
        size=args.size,
        walk=args.walk,
    )
    gc.freeze()  # imported objects live to the end; collecting them on exit would take long


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_recipes)


def _recipes(args: argparse.Namespace) -> None:
    from v2f.recipes import listing

    print(listing())


def _add_recipes_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=_NAME)
    parser.set_defaults(run=_recipes_show)


def _recipes_show(args: argparse.Namespace) -> None:
    from v2f.recipes import named, text_of

    for path in named(args.name):
        print(f"# {path}\n{text_of(path)}")


def _add_recipes_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=_NAME)
    parser.add_argument(
        "folder", nargs="?", type=argument, default=".", metavar="DIR", help="folder to copy into; default: this one"
    )
    parser.set_defaults(run=_recipes_copy)


def _recipes_copy(args: argparse.Namespace) -> None:
    from v2f.recipes import copy

    print("\n".join(copy(args.name, args.folder)))


if __name__ == "__main__":
    sys.exit(main())
