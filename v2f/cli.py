"""The command line: ``v2f`` and its verbs. Every error is one line and a non-zero exit code."""

import argparse
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from v2f import __version__
from v2f.errors import V2FError, guarded, spoken
from v2f.storage.address import argument
from v2f.training import command as train_command

if TYPE_CHECKING:
    from v2f.weights import JudgeConfig

_DATA = "a data set's folder or s3:// prefix"
_RUN = "a run: its folder, its s3:// prefix, or its MLflow run id"


@spoken
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 done, 1 a mistake that the message explains, 2 wrong usage, 130 interrupted, 141 nobody reads
    what it says; see train_command."""
    args = train_command.parsed(_parser(), arguments)
    return guarded(lambda: args.run(args), debug=args.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="v2f", description="Train systems that turn a voice into a face.")
    parser.add_argument("--version", action="version", version=f"v2f {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    train_command.arguments(
        _verb(verbs, "train", train_command.run, "train a system (what v2f/train.py does, on one process)")
    )

    launch = _verb(
        verbs, "exec", _exec, "run a launcher so that stopping it saves, and its exit code tells why it ended"
    )
    launch.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="LAUNCHER ...", help="torchrun or accelerate launch"
    )

    evaluate = _verb(verbs, "eval", _eval, "measure a run on seen and unseen people; writes eval.json into it")
    evaluate.add_argument("run_path", type=argument, metavar="RUN", help=_RUN)
    evaluate.add_argument("--data", type=argument, metavar="PATH", help="another data set than the run's own")

    generate = _verb(verbs, "generate", _generate, "what a run makes of a voice, a photo, a video or a label")
    generate.add_argument("run_path", type=argument, metavar="RUN", help=_RUN)
    generate.add_argument(
        "recording", nargs="?", type=argument, metavar="voice.wav", help="any file that libsndfile or FFmpeg reads"
    )
    generate.add_argument("--voice", type=argument, metavar="FILE", help="the same by its name: a recording")
    generate.add_argument("--photo", type=argument, metavar="FILE", help="a photo, for a run that asks for one")
    generate.add_argument("--video", type=argument, metavar="FILE", help="a video, for a run that asks for one")
    generate.add_argument("--label", metavar="NAME", help="a label, for a run that asks for one")
    generate.add_argument("--seed", type=_whole, default=0, metavar="N", help="of what is drawn by chance; default: 0")
    generate.add_argument(
        "-o",
        "--output",
        type=argument,
        required=True,
        metavar="out.png",
        help="where to write: .png, .wav, .mp4, .json",
    )
    generate.add_argument(
        "--size", type=_positive, metavar="PX", help="side of a face, up to the generator's; default: the training's"
    )

    embed = _verb(verbs, "embed", _embed, "what a run's nets say of every recording and photo of a folder, as arrays")
    embed.add_argument("run_path", type=argument, metavar="RUN", help=f"{_RUN}; or an export")
    embed.add_argument("folder", type=argument, metavar="FOLDER", help="files at any depth; a folder or s3:// prefix")
    embed.add_argument(
        "-o", "--output", type=argument, required=True, metavar="OUT.npz", help="where to write: .npz or .parquet"
    )
    embed.add_argument(
        "--checkpoint", type=_which, default="latest", metavar="best|latest|STEP", help="which; default: latest"
    )

    serve = _verb(verbs, "serve", _serve, "open a page to speak into: a face for your voice, and how sure it is")
    serve.add_argument("run_path", type=argument, metavar="RUN", help=_RUN)
    serve.add_argument("--host", default="127.0.0.1", help="where to listen; default: 127.0.0.1, this machine only")
    serve.add_argument("--port", type=_port, default=7860, help="default: 7860; 0: any that is free")
    serve.add_argument(
        "--checkpoint", type=_which, default="latest", metavar="best|latest|STEP", help="which; default: latest"
    )
    serve.add_argument("--max-seconds", type=_above_zero, default=30.0, metavar="S", help="of a clip; default: 30")
    serve.add_argument("--max-mb", type=_above_zero, default=20.0, metavar="MB", help="of a file; default: 20")
    serve.add_argument("--per-minute", type=_positive, default=12, metavar="N", help="clips of a client; default: 12")

    serve.add_argument(
        "--root-path", type=_root_path, default="", metavar="/PATH", help="where a proxy shows the page; default: at /"
    )

    report = _verb(verbs, "report", _report, "write a run's page: references beside faces, curves, retrieval")
    report.add_argument("run_path", type=argument, metavar="RUN", help="a run's folder")

    against = _verb(verbs, "compare", _compare, "what differs between runs, and which differences are more than noise")
    against.add_argument(
        "run_paths", type=argument, nargs="+", metavar="RUN", help=f"two to eight; {_RUN}, or an export"
    )
    against.add_argument(
        "-o", "--output", type=argument, default="compare.html", metavar="compare.html", help="where to write the page"
    )
    against.add_argument(
        "--voices", type=_positive, metavar="N", help="show N unseen people; default: 6, or none where recordings are"
    )
    against.add_argument(
        "--voice",
        type=argument,
        action="append",
        default=[],
        metavar="voice.wav",
        help="show this recording; may be given again",
    )
    against.add_argument(
        "--data", type=argument, metavar="PATH", help="show people of this data set; default: that of all runs"
    )

    track = _verb(verbs, "track", _track, "deliver to MLflow what it has missed of a run that is over")
    track.add_argument("run_path", type=argument, metavar="RUN", help="a run: its folder or its s3:// prefix")

    register = _verb(verbs, "register", _register, "put a run into MLflow's model registry: a table in, a table out")
    register.add_argument("run_path", type=argument, metavar="RUN", help=f"{_RUN}; or an export")
    register.add_argument("--name", metavar="NAME", help="the registered model's name; default: the run's")
    register.add_argument(
        "--uri", metavar="URI", help="MLflow's address; default: MLFLOW_TRACKING_URI, or the run's own"
    )
    register.add_argument(
        "--checkpoint", type=_which, default="latest", metavar="best|latest|STEP", help="which; default: latest"
    )

    checkpoints = verbs.add_parser(
        "checkpoint", help="look at a run's checkpoints, check and export them", description="Look at checkpoints."
    )
    below = checkpoints.add_subparsers(title="verbs", required=True, metavar="VERB")
    shown = _verb(below, "show", _checkpoint_show, "list a run's checkpoints, or what is in one of them")
    checked = _verb(below, "verify", _checkpoint_verify, "check every byte, name and number of the checkpoints")
    for verb in (shown, checked):
        verb.add_argument(
            "target", type=argument, metavar="RUN|FOLDER", help=f"{_RUN}; or the folder of one checkpoint"
        )
    export = _verb(
        below, "export", _checkpoint_export, "write one checkpoint for inference, with a model card and a data card"
    )
    export.add_argument("run_path", type=argument, metavar="RUN", help=_RUN)
    export.add_argument(
        "-o", "--output", required=True, type=argument, metavar="DIR", help="a new folder or s3:// prefix"
    )
    export.add_argument(
        "--checkpoint", type=_which, default="latest", metavar="best|latest|STEP", help="which; default: latest"
    )
    export.add_argument("--raw", action="store_true", help="the weights themselves instead of their moving averages")
    export.add_argument(
        "--format",
        choices=["safetensors", "torch-export", "onnx"],
        default="safetensors",
        help="the last two add a graph for programs without v2f, model.pt2 or model.onnx; default: safetensors",
    )

    shards = verbs.add_parser("shards", help="make and keep data sets", description="Make and keep data sets.")
    below = shards.add_subparsers(title="verbs", required=True, metavar="VERB")
    pack = _verb(below, "pack", _pack, "pack pairs of voice and face into WebDataset shards with a manifest")
    pack.add_argument(
        "recipe", type=argument, metavar="RECIPE.yaml", help="what to pack, from where, to where; see shards/"
    )
    pack.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="change one key of the recipe")
    pack.add_argument("--part", metavar="I/N", help="only part I (from 0) of N, on this machine; then finalize")
    finalize = _verb(below, "finalize", _finalize, "check the parts of a recipe and commit them as one data set")
    finalize.add_argument(
        "recipe", type=argument, metavar="RECIPE.yaml", help="the recipe that the parts were packed from"
    )
    finalize.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="the same as for the parts")
    index = _verb(below, "index", _index, "make a data set of WebDataset tars that others wrote, where they lie")
    index.add_argument("urls", nargs="+", metavar="URL", help="a tar, or several: 's3://lab/faces-{0000..0099}.tar'")
    index.add_argument(
        "-o", "--output", type=argument, metavar="DIR", required=True, help="where the manifest goes, a folder or s3://"
    )
    index.add_argument(
        "--map", type=argument, metavar="MAP.yaml", help="which members are audio, photo, identity, label"
    )
    index.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="tars whose places fit are train, valid or test, others train; default: by person",
    )
    verify = _verb(below, "verify", _verify, "check every byte, the schema and the splits of a data set")
    verify.add_argument("data", type=argument, metavar="PATH", help=_DATA)
    verify.add_argument(
        "--absent", metavar="ID", action="append", default=[], help="also that nothing names this person"
    )
    stats = _verb(below, "stats", _stats, "measure hours, people, lengths and sizes, and write a page with plots")
    stats.add_argument("data", type=argument, metavar="PATH", help=_DATA)
    stats.add_argument(
        "-o", "--output", type=argument, default="stats.html", metavar="stats.html", help="where to write the page"
    )
    stats.add_argument("--samples", type=_positive, metavar="N", help="measure only N samples, spread evenly")
    show = _verb(below, "show", _show, "write a contact sheet: photos and players of some samples")
    show.add_argument("data", type=argument, metavar="PATH", help=_DATA)
    show.add_argument(
        "-o", "--output", type=argument, default="show.html", metavar="show.html", help="where to write the page"
    )
    show.add_argument("--samples", type=_positive, default=24, metavar="N", help="how many; default: 24")
    show.add_argument("--split", metavar="NAME", help="only samples of this split")
    show.add_argument("--identity", metavar="ID", help="only samples of this person")
    compute = _verb(below, "precompute", _precompute, "write a data set anew with what frozen nets say of its photos")
    compute.add_argument("data", type=argument, metavar="PATH", help=_DATA)
    compute.add_argument(
        "overrides", nargs="*", metavar="dotted.key=value", help="a net: identity.net=..., codes.net=..."
    )
    compute.add_argument("--out", type=argument, metavar="NEW", required=True, help="where the new data set goes")
    compute.add_argument("--recipe", type=argument, metavar="RECIPE.yaml", help="a run's recipe, whose nets are taken")
    compute.add_argument("--part", metavar="I/N", help="only part I (from 0) of N; then once more without, to commit")
    remove = _verb(below, "remove", _remove, "take people out of a data set who withdraw their consent")
    remove.add_argument("data", type=argument, metavar="PATH", help=_DATA)
    remove.add_argument("--identity", metavar="ID", action="append", required=True, help="who; may be given again")

    weights = _verb(verbs, "weights", _weights, "what the recipes' frozen nets need, what is there, where to get it")
    weights.set_defaults(recipes=[], load=False)
    below = weights.add_subparsers(title="verbs", metavar="VERB")
    table = _verb(below, "table", _weights, "the same for chosen recipes")
    table.add_argument("--load", action="store_true", help="also load every file, strictly")
    convert = _verb(below, "convert", _convert, "make tensors of one of NVIDIA's StyleGAN2 pickles, running nothing")
    convert.add_argument(
        "pickle", type=argument, metavar="ada.pkl", help="stylegan2-ada-pytorch's or stylegan3's stylegan2-*.pkl"
    )
    convert.add_argument("output", type=argument, metavar="out.safetensors", help="where to write the tensors")
    mirror = _verb(below, "mirror", _mirror, "gather what recipes need in one place, for a site without the internet")
    mirror.add_argument("target", type=argument, metavar="DIR", help="the mirror: a folder or an s3:// prefix")
    mirror.add_argument(
        "--from", type=argument, dest="source", default="weights", metavar="PATH", help="where files lie (weights)"
    )
    mirror.add_argument("--download", action="store_true", help="fetch what has an address that answers directly")
    for verb in (table, mirror):
        help_text = "default: launch/recipes/*.yaml; dotted.key=value changes a key of all of them"
        verb.add_argument("recipes", nargs="*", metavar="RECIPE.yaml", help=help_text)

    recipes = _verb(verbs, "recipes", _recipes, "list the recipes that ship with v2f, show or copy them")
    below = recipes.add_subparsers(title="verbs", metavar="VERB")
    shown = _verb(below, "show", _recipes_show, "print a recipe that ships")
    copied = _verb(below, "copy", _recipes_copy, "copy a recipe that ships; overwrites nothing")
    for verb in (shown, copied):
        verb.add_argument("name", metavar="NAME", help="such as quickstart: that run and its data; or a listed path")
    copied.add_argument(
        "folder", nargs="?", type=argument, default=".", metavar="DIR", help="below which; default: here"
    )

    doctor = _verb(verbs, "doctor", _doctor, "look whether everything here is as a run needs it: a verdict a line")
    doctor.add_argument(
        "--run-config", type=argument, metavar="FILE", help="a run's recipe: its places, data and weights, too"
    )
    doctor.add_argument(
        "--store", type=argument, metavar="PATH", help="make a round trip to this s3:// prefix or folder"
    )
    doctor.add_argument("--tracking", metavar="URI", help="make a round trip to this MLflow; default: the recipe's")
    doctor.add_argument(
        "--weights", type=argument, metavar="PATH", help="where the recipe's frozen nets lie; default: as it says"
    )
    doctor.add_argument("--limit", type=float, default=20.0, metavar="SECONDS", help="for a check; default: 20")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    doctor.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="change one key of the recipe")
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Callable[..., int | None], text: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _which(text: str) -> str | int:
    if text in ("best", "latest"):
        return text
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither best nor latest nor a step")
    return int(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535")
    return int(text)


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9][A-Za-z0-9._~-]*)+", path):
        raise argparse.ArgumentTypeError(f"{text!r} is no path such as /voice")
    return path


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


# Imports stand in the verbs: `--help` must not wait for torch.


def _exec(args: argparse.Namespace) -> int:
    from v2f.training.supervise import supervise

    return supervise(args.command[1:] if args.command[:1] == ["--"] else args.command)


def _eval(args: argparse.Namespace) -> None:
    from v2f.evaluation.evaluate import evaluate
    from v2f.runs.run import Run

    evaluate(Run.open(args.run_path), data=args.data)


def _generate(args: argparse.Namespace) -> None:
    # Before torch reads it: between the small operations of one face its threads would burn seconds of CPU waiting.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from v2f.generate import generate
    from v2f.runs.run import Run

    if args.recording is not None and args.voice is not None:
        raise V2FError(f"two recordings are given, {args.recording} and {args.voice}; name one")
    generate(
        Run.open(args.run_path),
        args.recording if args.voice is None else args.voice,
        args.output,
        photo=args.photo,
        video=args.video,
        label=args.label,
        seed=args.seed,
        size=args.size,
    )
    gc.freeze()  # what was imported lives to the end: else the interpreter looks through it on its way out, for long


def _embed(args: argparse.Namespace) -> None:
    from v2f.evaluation.embed import embed
    from v2f.runs.run import Run

    embed(Run.open(args.run_path), args.folder, args.output, which=args.checkpoint)


def _serve(args: argparse.Namespace) -> None:
    from v2f.web.serve import Limits, serve

    bounds = Limits(max_seconds=args.max_seconds, max_mb=args.max_mb, per_minute=args.per_minute)
    serve(args.run_path, host=args.host, port=args.port, which=args.checkpoint, bounds=bounds, root_path=args.root_path)


def _report(args: argparse.Namespace) -> None:
    from v2f.web.report import report

    print(report(args.run_path))


def _compare(args: argparse.Namespace) -> None:
    from v2f.web.comparison import comparison

    comparison(args.run_paths, args.output, voices=args.voices, recordings=args.voice, data=args.data)


def _track(args: argparse.Namespace) -> None:
    from v2f.runs.folder import RunFolder
    from v2f.runs.run import Run
    from v2f.tracking.tracker import deliver

    folder = RunFolder(Run.open(args.run_path).path)
    folder.fetch("track")
    deliver(str(folder.local))
    folder.publish()


def _register(args: argparse.Namespace) -> None:
    from v2f.web.pyfunc import register

    register(args.run_path, args.name, args.uri, args.checkpoint)


def _checkpoint_show(args: argparse.Namespace) -> None:
    from v2f.runs.checkpoint_commands import show

    show(args.target)


def _checkpoint_verify(args: argparse.Namespace) -> int:
    from v2f.runs.checkpoint_commands import verify

    return 1 if verify(args.target) else 0


def _checkpoint_export(args: argparse.Namespace) -> None:
    from v2f.runs.checkpoint_commands import export

    export(args.run_path, args.output, args.checkpoint, raw=args.raw, format=args.format)


def _pack(args: argparse.Namespace) -> None:
    from v2f.prepare.pack import load_recipe, pack, pack_part
    from v2f.prepare.parts import Part

    recipe = load_recipe(args.recipe, args.overrides)
    if args.part is None:
        pack(recipe)
    else:
        pack_part(recipe, Part.parse(args.part))


def _finalize(args: argparse.Namespace) -> None:
    from v2f.prepare.pack import finalize, load_recipe

    finalize(load_recipe(args.recipe, args.overrides))


def _index(args: argparse.Namespace) -> None:
    from v2f.prepare.index import index

    index(args.urls, args.output, args.map, args.split)


def _stats(args: argparse.Namespace) -> None:
    from v2f.web.dataset import stats_page

    stats_page(args.data, args.output, args.samples)


def _show(args: argparse.Namespace) -> None:
    from v2f.web.dataset import show

    show(args.data, args.output, args.samples, args.split, args.identity)


def _precompute(args: argparse.Namespace) -> None:
    from v2f.prepare.parts import WHOLE, Part
    from v2f.prepare.precompute import load, precompute

    part = WHOLE if args.part is None else Part.parse(args.part)
    precompute(args.data, args.out, load(args.overrides, args.recipe), part)


def _verify(args: argparse.Namespace) -> int:
    from v2f.prepare.verify import verify

    return 1 if verify(args.data, args.absent) else 0


def _remove(args: argparse.Namespace) -> None:
    from v2f.prepare.remove import remove

    remove(args.data, args.identity)


def _weights(args: argparse.Namespace) -> int:
    from v2f.runs.run import reading_runs
    from v2f.weights.commands import show

    with reading_runs():
        return 1 if show(_needs(args.recipes), load=args.load) else 0


def _convert(args: argparse.Namespace) -> None:
    from v2f.weights.nvidia import convert

    about = convert(args.pickle, args.output)
    clamp = about["conv_clamp"]
    clamp = "" if clamp == "None" else f"; it was trained with conv_clamp {clamp}, which is not applied here"
    print(f"{args.output}: a StyleGAN2 generator of {about['size']} px, from {about['source_name']}{clamp}")


def _mirror(args: argparse.Namespace) -> int:
    from v2f.weights.commands import mirror

    return 1 if mirror(args.target, _needs(args.recipes), args.source, args.download) else 0


def _doctor(args: argparse.Namespace) -> int:
    from v2f.doctor import Asked, doctor

    if args.run_config is None and (args.weights or args.overrides):
        raise V2FError("v2f doctor: --weights and dotted.key=value belong to a recipe; name it with --run-config")
    asked = Asked(
        recipe=args.run_config,
        overrides=args.overrides,
        store=args.store,
        tracking=args.tracking,
        weights=args.weights,
    )
    return 1 if doctor(asked, limit_s=args.limit, as_json=args.json) else 0


def _recipes(args: argparse.Namespace) -> None:
    from v2f.recipes import listing

    print(listing())


def _recipes_show(args: argparse.Namespace) -> None:
    from v2f.recipes import named, text_of

    for path in named(args.name):
        print(f"# {path}\n{text_of(path)}")


def _recipes_copy(args: argparse.Namespace) -> None:
    from v2f.recipes import copy

    print("\n".join(copy(args.name, args.folder)))


def _needs(arguments: Sequence[str]) -> "dict[str, JudgeConfig]":
    """The frozen nets that recipes of runs name, with overrides; a system without such a group needs none."""
    from v2f.runs.run import load_config

    overrides = [argument for argument in arguments if "=" in argument]
    paths = [argument for argument in arguments if "=" not in argument]
    paths = paths or sorted(str(path) for path in Path("launch/recipes").glob("*.yaml"))
    if not paths:
        raise V2FError("no recipe: name one (`v2f recipes copy NAME`), or run this where launch/recipes is")
    stems = [Path(path).stem for path in paths]
    needs = {}
    for path, stem in zip(paths, stems, strict=True):
        system = load_config(path, overrides).system
        if system.nets is not None:
            needs[stem if stems.count(stem) == 1 else path] = system.nets
    return needs


if __name__ == "__main__":
    sys.exit(main())
