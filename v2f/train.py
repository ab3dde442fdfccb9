"""What ``accelerate launch v2f/train.py --config RECIPE.yaml [dotted.key=value ...]`` runs: parse, build, fit."""

import argparse
import sys
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of training, for this script and for the verb ``v2f train``."""
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml", help="one whole run, as under launch/recipes")
    parser.add_argument(
        "--resume",
        choices=["auto", "none"],
        default="none",
        help="auto: go on from the run's newest committed checkpoint, if there is one; none (default): a new run",
    )
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="change one key of the recipe")


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say. The imports stand here: ``--help`` must not wait for torch."""
    from v2f.run import load_config
    from v2f.trainer import fit

    fit(load_config(args.config, args.overrides), resume=args.resume)


def main() -> int:
    from v2f.errors import guarded

    parser = argparse.ArgumentParser(prog="v2f/train.py", description="Train a system as a recipe says.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments(parser)
    args = parser.parse_args()
    return guarded(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    # A script's own folder stands first on sys.path, where evaluate.py or config.py would shadow other packages'.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p or ".").resolve() != here)]
    sys.exit(main())
