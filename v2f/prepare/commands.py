"""The verbs ``v2f shards`` that make, check and change a data set: their options, and what runs them."""

import argparse

from v2f.options import DATA, OVERRIDES, above_zero, positive, whole
from v2f.storage.address import argument


def add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", type=argument, metavar="RECIPE.yaml", help="what to pack, from where, to where; see shards/"
    )
    parser.add_argument("overrides", nargs="*", metavar=OVERRIDES, help="change one key of the recipe")
    parser.add_argument("--part", metavar="I/N", help="pack only part I (from 0) of N; then run finalize")
    parser.set_defaults(run=_pack)


def _pack(args: argparse.Namespace) -> None:
    from v2f.prepare.pack import load_recipe, pack, pack_part
    from v2f.prepare.parts import Part

    recipe = load_recipe(args.recipe, args.overrides)
    if args.part is None:
        pack(recipe)
    else:
        pack_part(recipe, Part.parse(args.part))


def add_finalize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", type=argument, metavar="RECIPE.yaml", help="the recipe that the parts were packed from"
    )
    parser.add_argument("overrides", nargs="*", metavar=OVERRIDES, help="the same as for the parts")
    parser.set_defaults(run=_finalize)


def _finalize(args: argparse.Namespace) -> None:
    from v2f.prepare.pack import finalize, load_recipe

    finalize(load_recipe(args.recipe, args.overrides))


def add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "urls", nargs="+", metavar="URL", help="one or more tars, for example 's3://lab/faces-{0000..0099}.tar'"
    )
    parser.add_argument(
        "-o", "--output", type=argument, metavar="DIR", required=True, help="folder or s3:// prefix of the manifest"
    )
    parser.add_argument(
        "--map", type=argument, metavar="MAP.yaml", help="which members are audio, photo, identity, label"
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="put tars whose path matches PATTERN into train, valid or test, others into train; default: by person",
    )
    parser.set_defaults(run=_index)


def _index(args: argparse.Namespace) -> None:
    from v2f.prepare.index import index

    index(args.urls, args.output, args.map, args.split)


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=argument, metavar="PATH", help=DATA)
    parser.add_argument(
        "--absent", metavar="ID", action="append", default=[], help="also verify that nothing names this person"
    )
    parser.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> int:
    from v2f.prepare.verify import verify

    return 1 if verify(args.data, args.absent) else 0


def add_precompute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=argument, metavar="PATH", help=DATA)
    parser.add_argument(
        "overrides", nargs="*", metavar=OVERRIDES, help="a net: identity.net=..., codes.net=..., encoder.net=..."
    )
    parser.add_argument(
        "--out", type=argument, metavar="NEW", required=True, help="folder or s3:// prefix of the new data set"
    )
    parser.add_argument("--recipe", type=argument, metavar="RECIPE.yaml", help="use the nets of this recipe of a run")
    parser.add_argument(
        "--voice",
        action="store_true",
        help="features of the voice encoder, instead of what the recipe's frozen nets say",
    )
    parser.add_argument(
        "--tokens",
        type=argument,
        metavar="RUN",
        help="codes of each sound, by a run that codes sounds, such as vq_audio",
    )
    parser.add_argument(
        "--yes", action="store_true", help="start even if the features need more than the disk has free"
    )
    parser.add_argument("--part", metavar="I/N", help="only part I (from 0) of N; then run once without it to commit")
    parser.set_defaults(run=_precompute)


def _precompute(args: argparse.Namespace) -> None:
    from v2f.prepare.parts import WHOLE, Part
    from v2f.prepare.precompute import load, precompute

    part = WHOLE if args.part is None else Part.parse(args.part)
    precompute(args.data, args.out, load(args.overrides, args.recipe, args.voice, args.tokens), part, args.yes)


def add_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=argument, metavar="PATH", help=DATA)
    parser.add_argument("--identity", metavar="ID", action="append", required=True, help="whom to remove; repeatable")
    parser.set_defaults(run=_remove)


def _remove(args: argparse.Namespace) -> None:
    from v2f.prepare.remove import remove

    remove(args.data, args.identity)


def add_film(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("thing", metavar="CLASS", help="bark, meow, bell or engine")
    parser.add_argument(
        "-o", "--output", type=argument, required=True, metavar="OUT.mp4", help="where to write the video"
    )
    parser.add_argument("--number", type=whole, default=0, metavar="N", help="which thing of the class; default: 0")
    parser.add_argument("--take", type=whole, default=0, metavar="N", help="which take of the thing; default: 0")
    parser.add_argument("--seconds", type=above_zero, default=1.8, metavar="S", help="length; default: 1.8")
    parser.add_argument("--size", type=positive, default=64, metavar="PX", help="side of the picture; default: 64")
    parser.add_argument("--sound", action="store_true", help="with its sound; default: silent")
    parser.set_defaults(run=_film)


def _film(args: argparse.Namespace) -> None:
    from v2f.prepare.film import film

    film(
        args.thing,
        args.output,
        number=args.number,
        take=args.take,
        seconds=args.seconds,
        size=args.size,
        sound=args.sound,
    )
