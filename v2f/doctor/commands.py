"""The verb ``v2f doctor``: its options, and what runs it."""

import argparse

from v2f.errors import V2FError
from v2f.options import OVERRIDES
from v2f.storage.address import argument


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-config", type=argument, metavar="FILE", help="also check the paths, data and weights of this recipe"
    )
    parser.add_argument(
        "--store", type=argument, metavar="PATH", help="make a round trip to this s3:// prefix or folder"
    )
    parser.add_argument("--tracking", metavar="URI", help="make a round trip to this MLflow; default: the recipe's")
    parser.add_argument(
        "--weights",
        type=argument,
        metavar="PATH",
        help="where the frozen nets' weights are; default: as in the recipe",
    )
    parser.add_argument(
        "--limit", type=float, default=20.0, metavar="SECONDS", help="time limit of each check; default: 20"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("overrides", nargs="*", metavar=OVERRIDES, help="change one key of the recipe")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from v2f.doctor.examination import doctor
    from v2f.doctor.findings import Setup

    if args.run_config is None and (args.weights or args.overrides):
        raise V2FError("v2f doctor: --weights and dotted.key=value change a recipe; name one with --run-config")
    setup = Setup(
        recipe=args.run_config,
        overrides=args.overrides,
        store=args.store,
        tracking=args.tracking,
        weights=args.weights,
    )
    return 1 if doctor(setup, limit_s=args.limit, as_json=args.json) else 0
