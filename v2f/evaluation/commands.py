"""The verbs ``v2f eval`` and ``v2f embed``: their options, and what runs them."""

import argparse

from v2f.options import RUN, add_checkpoint
from v2f.storage.address import argument


def add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=argument, metavar="RUN", help=RUN)
    parser.add_argument("--data", type=argument, metavar="PATH", help="another data set than the run's own")
    parser.add_argument(
        "--attributes", type=argument, metavar="FILE.csv", help="identity,sex,age,...: numbers for each group of people"
    )
    parser.add_argument(
        "--trials",
        type=argument,
        metavar="FILE",
        help="for a system that recognizes speakers: a list of trials in VoxCeleb's format",
    )
    parser.add_argument(
        "--classifier",
        type=argument,
        metavar="RUN",
        help="for a system that makes pictures or sounds from labels: a run that reads these labels in them",
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=1,
        metavar="N",
        help="for a system that draws faces by chance: so many of each clip, their mean embedding and their spread",
    )
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> None:
    from v2f.evaluation.evaluate import evaluate
    from v2f.runs.run import Run

    evaluate(
        Run.open(args.run_path),
        data=args.data,
        attributes=args.attributes,
        trials=args.trials,
        classifier=args.classifier,
        draws=args.draws,
    )


def add_embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=argument, metavar="RUN", help=f"{RUN}; or an export")
    parser.add_argument("folder", type=argument, metavar="FOLDER", help="files at any depth; a folder or s3:// prefix")
    parser.add_argument(
        "-o", "--output", type=argument, required=True, metavar="OUT.npz", help="where to write: .npz or .parquet"
    )
    add_checkpoint(parser)
    parser.set_defaults(run=_embed)


def _embed(args: argparse.Namespace) -> None:
    from v2f.evaluation.embed import embed
    from v2f.runs.run import Run

    embed(Run.open(args.run_path), args.folder, args.output, which=args.checkpoint)
