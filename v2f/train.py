"""What ``accelerate launch v2f/train.py --config RECIPE.yaml [dotted.key=value ...]`` runs: parse, build, fit."""

import argparse
import sys
from collections.abc import Sequence
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
    parser.add_argument(
        "--allow-changes", action="store_true", help="go on although the configuration changed; the difference is kept"
    )
    parser.add_argument(
        "--max-time", metavar="23h", help="save and leave with code 75 so long after the start (23h, 90m, 3600s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="change one key of the recipe")


def parsed(parser: argparse.ArgumentParser, command: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command line in which overrides may stand before, between and behind the options."""
    try:
        args, others = parser.parse_known_args(command)
        if "overrides" in args and all("=" in each and not each.startswith("-") for each in others):
            args.overrides += others  # argparse takes them only before the first option
        elif others:
            parser.error(f"unrecognized arguments: {' '.join(others)}")
    except SystemExit as left:
        if left.code:
            from v2f import stopping

            stopping.report(stopping.MISTAKE)  # under a launcher it would be a code that is worth another try
        raise
    return args


def run(args: argparse.Namespace) -> int | None:
    """Train as the arguments say; the exit code (:mod:`v2f.stopping`). Imports stand here: ``--help`` must not wait."""
    from v2f import stopping
    from v2f.errors import guarded

    together = False

    def train() -> int:
        nonlocal together
        stopping.die_with_launcher()
        seconds = None if args.max_time is None else stopping.seconds_of(args.max_time)
        with stopping.Wish(seconds) as wish:
            stopping.report(None)  # from here on a signal is heard
            from v2f.lease import HeldError, LostError
            from v2f.run import load_config
            from v2f.tracking import say
            from v2f.trainer import fit

            config = load_config(args.config, args.overrides)
            try:
                fit(config, resume=args.resume, allow_changes=args.allow_changes, wish=wish)
            except stopping.Stopped as stopped:
                say(f"v2f: {stopped}")
                return stopping.STOPPED
            except (HeldError, LostError) as error:
                if isinstance(error, LostError) and error.gone:
                    raise
                say(f"v2f: {error}")
                return stopping.STOPPED  # another start goes on with it
            except stopping.GivenUpError:
                together = True
                raise
        return stopping.DONE

    code = guarded(train, debug=args.debug, mistake=stopping.MISTAKE)
    return stopping.report(code, together=together)


def main() -> int | None:
    parser = argparse.ArgumentParser(prog="v2f/train.py", description="Train a system as a recipe says.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments(parser)
    return run(parsed(parser))


if __name__ == "__main__":
    # A script's own folder stands first on sys.path, where evaluate.py or config.py would shadow other packages'.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p or ".").resolve() != here)]
    from v2f.errors import spoken

    sys.exit(spoken(main)())
