"""The verbs about checkpoints, about the weights that recipes of runs name, and ``v2f track``: their options, and what
runs them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from v2f.errors import V2FError
from v2f.options import RUN, add_checkpoint
from v2f.storage.address import argument

if TYPE_CHECKING:
    from v2f.weights import Requirements


def add_track(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=argument, metavar="RUN", help="a run: its folder or its s3:// prefix")
    parser.set_defaults(run=_track)


def _track(args: argparse.Namespace) -> None:
    from v2f.runs.folder import RunFolder
    from v2f.runs.run import Run
    from v2f.tracking.delivery import deliver

    folder = RunFolder(Run.open(args.run_path).path)
    folder.fetch("track")
    deliver(str(folder.local))
    folder.publish()


# ------------------------------------------------------------------------------------------------ checkpoints


def add_checkpoint_show(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    parser.set_defaults(run=_checkpoint_show)


def add_checkpoint_verify(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    parser.set_defaults(run=_checkpoint_verify)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=argument, metavar="RUN|FOLDER", help=f"{RUN}; or the folder of one checkpoint")


def _checkpoint_show(args: argparse.Namespace) -> None:
    from v2f.runs.inspect import show

    show(args.target)


def _checkpoint_verify(args: argparse.Namespace) -> int:
    from v2f.runs.inspect import verify

    return 1 if verify(args.target) else 0


def add_checkpoint_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=argument, metavar="RUN", help=RUN)
    parser.add_argument(
        "-o", "--output", required=True, type=argument, metavar="DIR", help="a new folder or s3:// prefix"
    )
    add_checkpoint(parser)
    parser.add_argument("--raw", action="store_true", help="export the weights instead of their moving averages")
    parser.add_argument(
        "--format",
        choices=["safetensors", "torch-export", "onnx"],
        default="safetensors",
        help="the last two add a graph for programs without v2f, model.pt2 or model.onnx; default: safetensors",
    )
    parser.set_defaults(run=_checkpoint_export)


def _checkpoint_export(args: argparse.Namespace) -> None:
    from v2f.runs.export import export

    export(args.run_path, args.output, args.checkpoint, raw=args.raw, format=args.format)


# ------------------------------------------------------------------------------- the weights that recipes name


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_weights, recipes=[], load=False)


def add_weights_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--load", action="store_true", help="also load every file, strictly")
    _add_recipes(parser)
    parser.set_defaults(run=_weights)


def _weights(args: argparse.Namespace) -> int:
    from v2f.runs.run import reading_runs
    from v2f.weights.commands import show

    with reading_runs():
        return 1 if show(_needs(args.recipes), load=args.load) else 0


def add_weights_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pickle", type=argument, metavar="ada.pkl", help="a stylegan2-*.pkl of stylegan2-ada-pytorch or stylegan3"
    )
    parser.add_argument("output", type=argument, metavar="out.safetensors", help="where to write the tensors")
    parser.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> None:
    from v2f.weights.nvidia import convert

    about = convert(args.pickle, args.output)
    clamp = about["conv_clamp"]
    clamp = "" if clamp == "None" else f"; it was trained with conv_clamp {clamp}, which is not applied here"
    print(f"{args.output}: a StyleGAN2 generator of {about['size']} px, from {about['source_name']}{clamp}")


def add_weights_mirror(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=argument, metavar="DIR", help="the mirror: a folder or an s3:// prefix")
    parser.add_argument(
        "--from",
        type=argument,
        dest="source",
        default="weights",
        metavar="PATH",
        help="where the files are now; default: weights",
    )
    parser.add_argument(
        "--download", action="store_true", help="download missing files that have a direct download address"
    )
    _add_recipes(parser)
    parser.set_defaults(run=_mirror)


def _mirror(args: argparse.Namespace) -> int:
    from v2f.weights.commands import mirror

    return 1 if mirror(args.target, _needs(args.recipes), args.source, args.download) else 0


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    text = "default: launch/recipes/*.yaml; dotted.key=value changes a key of all of them"
    parser.add_argument("recipes", nargs="*", metavar="RECIPE.yaml", help=text)


def _needs(arguments: Sequence[str]) -> "dict[str, Requirements]":
    """Name of a recipe -> the weights that it needs. ``arguments``: recipes and overrides."""
    from v2f.runs.config import load_config

    overrides = [each for each in arguments if "=" in each]
    paths = [each for each in arguments if "=" not in each]
    paths = paths or sorted(str(path) for path in Path("launch/recipes").glob("*.yaml"))
    if not paths:
        raise V2FError(
            "no recipe was named, and launch/recipes is not here; name one (`v2f recipes copy NAME` copies one)"
        )
    stems = [Path(path).stem for path in paths]
    needs = {}
    for path, stem in zip(paths, stems, strict=True):
        system = load_config(path, overrides).system
        needs[stem if stems.count(stem) == 1 else path] = system.requirements(with_referee=True)
    return needs
