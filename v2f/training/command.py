"""The commands that train (``v2f/train.py`` and ``v2f train``: parse, build, fit), and ``v2f exec``."""

import argparse
import signal
import threading
from collections.abc import Sequence


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of training."""
    from v2f.storage.address import argument

    parser.add_argument(
        "--config",
        required=True,
        type=argument,
        metavar="RECIPE.yaml",
        help="the configuration of a run, such as one of launch/recipes",
    )
    parser.add_argument(
        "--resume",
        choices=["auto", "none"],
        default="none",
        help="auto: resume from the run's newest committed checkpoint, if there is one; none (default): a new run",
    )
    parser.add_argument(
        "--allow-changes", action="store_true", help="resume although the configuration changed; the change is recorded"
    )
    parser.add_argument(
        "--max-time",
        metavar="23h",
        help="this long after the start, save and exit with code 75 (23h, 1h30m, 90m, 3600s; a number alone: seconds)",
    )
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="change one key of the recipe")
    parser.set_defaults(run=run)


def add_exec(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand ``v2f exec``."""
    text = "torchrun or accelerate launch, with its arguments"
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="LAUNCHER ...", help=text)
    parser.set_defaults(run=_exec)


def _exec(args: argparse.Namespace) -> int:
    from v2f.training.supervise import supervise

    return supervise(args.command[1:] if args.command[:1] == ["--"] else args.command)


def parsed(parser: argparse.ArgumentParser, command: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command line, in which overrides may come before, between and after the options."""
    try:
        args, others = parser.parse_known_args(command)
        if "overrides" in args and all("=" in each and not each.startswith("-") for each in others):
            args.overrides += others  # argparse accepts them only before the first option
        elif others:
            parser.error(f"unrecognized arguments: {' '.join(others)}")
    except SystemExit as left:
        if left.code:
            from v2f.training import stopping

            stopping.report(stopping.MISTAKE)  # a launcher would turn the exit code into one that is retried
        raise
    return args


def run(args: argparse.Namespace) -> int | None:
    """Train as the arguments say; returns the exit code (:mod:`v2f.training.stopping`).

    Imports are inside this function so that ``--help`` does not wait for them.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # nothing to profile yet; the loop installs a handler
    from v2f.errors import guarded
    from v2f.training import stopping

    stopping.outlive_the_terminal()
    together = False

    def train() -> int:
        nonlocal together
        stopping.die_with_launcher()
        seconds = None if args.max_time is None else stopping.seconds_of(args.max_time)
        with stopping.StopRequest(seconds) as stop_request:
            stopping.report(None)  # from here on this rank handles signals
            from v2f.runs.config import load_config
            from v2f.storage.lease import HeldError, LostError
            from v2f.tracking.console import say
            from v2f.training.trainer import fit

            config = load_config(args.config, args.overrides)
            try:
                fit(config, resume=args.resume, allow_changes=args.allow_changes, stop_request=stop_request)
            except stopping.Stopped as stopped:
                say(f"v2f: {stopped}")
                return stopping.STOPPED
            except (HeldError, LostError) as error:
                if isinstance(error, LostError) and error.gone:
                    raise
                say(f"v2f: {error}")
                return stopping.STOPPED  # another launch owns the run and continues it
            except stopping.GivenUpError:
                together = True
                raise
        return stopping.DONE

    code = guarded(train, debug=args.debug, error_code=stopping.MISTAKE)
    return stopping.report(code, together=together)


def main() -> int | None:
    parser = argparse.ArgumentParser(prog="v2f/train.py", description="Train a system as a recipe says.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments(parser)
    return run(parsed(parser))
