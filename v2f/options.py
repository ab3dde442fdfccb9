"""What the options of several verbs share: help texts and types of values. Imports nothing but the standard library."""

import argparse

DATA = "a data set's folder or s3:// prefix"
RUN = "a run: its folder, its s3:// prefix or its MLflow run id"
PIPELINE = f"{RUN}; or a pipeline: its YAML file"
OVERRIDES = "dotted.key=value"


def positive(text: str) -> int:
    """A whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def whole(text: str) -> int:
    """A whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """``--checkpoint``: which checkpoint of a run, ``best``, ``latest`` or a step."""
    metavar, text = "best|latest|STEP", "which checkpoint; default: latest"
    parser.add_argument("--checkpoint", type=_checkpoint, default="latest", metavar=metavar, help=text)


def _checkpoint(text: str) -> str | int:
    if text in ("best", "latest"):
        return text
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not best, latest or a step")
    return int(text)
