"""The verbs that write or serve a page, and ``v2f register``: their options, and what runs them."""

import argparse
import re

from v2f.options import DATA, PIPELINE, RUN, above_zero, add_checkpoint, positive
from v2f.storage.address import argument


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=argument, metavar="RUN", help=PIPELINE)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine")
    parser.add_argument("--port", type=_port, default=7860, help="default: 7860; 0: any free port")
    add_checkpoint(parser)
    parser.add_argument(
        "--max-seconds", type=above_zero, default=30.0, metavar="S", help="longest clip; default: 30 seconds"
    )
    parser.add_argument("--max-mb", type=above_zero, default=20.0, metavar="MB", help="largest file; default: 20 MB")
    parser.add_argument(
        "--per-minute", type=positive, default=12, metavar="N", help="clips per client and minute; default: 12"
    )
    parser.add_argument(
        "--root-path", type=_root_path, default="", metavar="/PATH", help="path of the page behind a proxy; default: /"
    )
    parser.set_defaults(run=_serve)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9][A-Za-z0-9._~-]*)+", path):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path such as /voice")
    return path


def _serve(args: argparse.Namespace) -> None:
    from v2f.web.limits import Limits
    from v2f.web.serve import serve

    bounds = Limits(max_seconds=args.max_seconds, max_mb=args.max_mb, per_minute=args.per_minute)
    serve(args.run_path, host=args.host, port=args.port, which=args.checkpoint, bounds=bounds, root_path=args.root_path)


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_path", type=argument, metavar="RUN", help="a run's folder")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
    from v2f.web.report import report

    print(report(args.run_path))


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_paths",
        type=argument,
        nargs="+",
        metavar="RUN",
        help="two to eight runs, each a folder, an s3:// prefix, an MLflow run id or an export",
    )
    _add_output(parser, "compare.html")
    parser.add_argument(
        "--voices",
        type=positive,
        metavar="N",
        help="show N unseen people; default: 6, or none if recordings are given",
    )
    parser.add_argument(
        "--voice",
        type=argument,
        action="append",
        default=[],
        metavar="voice.wav",
        help="show this recording, too; repeatable",
    )
    parser.add_argument(
        "--data", type=argument, metavar="PATH", help="show people of this data set; default: the one all runs share"
    )
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> None:
    from v2f.web.comparison import comparison

    comparison(args.run_paths, args.output, voices=args.voices, recordings=args.voice, data=args.data)


def add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_path", type=argument, metavar="RUN", help=f"{RUN}; an export; or a pipeline: its YAML file"
    )
    parser.add_argument("--name", metavar="NAME", help="name of the registered model; default: the run's")
    parser.add_argument("--uri", metavar="URI", help="MLflow's address; default: MLFLOW_TRACKING_URI, or the run's own")
    add_checkpoint(parser)
    parser.set_defaults(run=_register)


def _register(args: argparse.Namespace) -> None:
    from v2f.web.pyfunc import register

    register(args.run_path, args.name, args.uri, args.checkpoint)


def add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=argument, metavar="PATH", help=DATA)
    _add_output(parser, "stats.html")
    parser.add_argument("--samples", type=positive, metavar="N", help="measure only N samples, spread evenly")
    parser.set_defaults(run=_stats)


def _stats(args: argparse.Namespace) -> None:
    from v2f.web.dataset import stats_page

    stats_page(args.data, args.output, args.samples)


def add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=argument, metavar="PATH", help=DATA)
    _add_output(parser, "show.html")
    parser.add_argument(
        "--samples", type=positive, default=24, metavar="N", help="how many samples to show; default: 24"
    )
    parser.add_argument("--split", metavar="NAME", help="only samples of this split")
    parser.add_argument("--identity", metavar="ID", help="only samples of this person")
    parser.set_defaults(run=_show)


def _show(args: argparse.Namespace) -> None:
    from v2f.web.dataset import show

    show(args.data, args.output, args.samples, args.split, args.identity)


def _add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """``--output``: where the page is written."""
    text = "where to write the page"
    parser.add_argument("-o", "--output", type=argument, default=name, metavar=name, help=text)
