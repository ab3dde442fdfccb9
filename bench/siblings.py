"""One small run of each kind of system beside Voice Styled Face, and one page that shows them all: `make siblings`.

    python bench/siblings.py                # packs, trains, evaluates, writes runs/siblings/report.html
    python bench/siblings.py --page         # writes only the page anew

Everything is synthetic. A run that is evaluated already is not repeated, one that was stopped is resumed. The runs are
short, so that all of them fit into half an hour on 2 cores: they show that each kind works and how it fails, not what
it can reach. Tables over seeds come from the studies of the single systems in bench/.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from v2f.evaluation.observers import BY
from v2f.evaluation.protocol import Metric
from v2f.evaluation.subjects import METRICS, Subject
from v2f.runs.run import Run, build_system
from v2f.web.curves import read_curves
from v2f.web.page import data_uri, environment
from v2f.web.report import last_verdict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.runs import REPOSITORY, finished, v2f

PAGE = REPOSITORY / "runs" / "siblings" / "report.html"
_JUDGE = "shapes-classifier"


@dataclass(frozen=True)
class Pack:
    """A small data set: a recipe of shards/ and its overrides."""

    recipe: str
    changes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sibling:
    """A small run: a recipe of launch/recipes, its data set, and the runs that it starts from."""

    title: str
    recipe: str
    data: str
    steps: int
    needs: tuple[str, ...] = ()
    changes: Mapping[str, str] = field(default_factory=dict)


PACKS = {
    "shapes": Pack("shapes"),
    "faces": Pack("quickstart", {"synthetic.train": "{people: 3000, clips: 1}", "synthetic.seconds": "0.1"}),
    "speakers": Pack("speaker-synthetic", {"synthetic.train": "{people: 1000, clips: 8}"}),
}
_OWN_RHYTHM = {"train.validate_every": "50"}  # a verdict needs few validations, but several
SIBLINGS = {
    "voice-embedding": Sibling("S2: the speaker embedding", "voice-embedding", "speakers", 800),
    "shapes-classifier": Sibling("The judge of the digits", "shapes-classifier", "shapes", 400),
    "face-gan-collapse": Sibling("S3, made to fail", "face-gan-collapse", "faces", 300, changes=_OWN_RHYTHM),
    "face-gan-diverge": Sibling("S3, made to fail", "face-gan-diverge", "faces", 300, changes=_OWN_RHYTHM),
    "face-gan-r1": Sibling("S3: a face GAN that does not fail", "face-gan-r1", "faces", 1000),
    "voice-gan": Sibling(
        "S2: the voice-to-face GAN",
        "voice-gan",
        "speakers",
        1500,
        needs=("voice-embedding",),
        changes={"system.encoder.path": "RUN:voice-embedding"},
    ),
    "shapes-cvae": Sibling("S4: cVAE", "shapes-cvae", "shapes", 1000, needs=(_JUDGE,)),
    "shapes-cgan": Sibling("S4: cGAN", "shapes-cgan", "shapes", 1500, needs=(_JUDGE,)),
    "shapes-gan-from-cvae": Sibling(
        "S4: a GAN that starts from the cVAE's decoder",
        "shapes-gan-from-cvae",
        "shapes",
        1000,
        needs=(_JUDGE, "shapes-cvae"),
        changes={"init_from": "[{run: RUN:shapes-cvae, module: decoder}]"},
    ),
    "shapes-cvae-gan": Sibling("S4: cVAE-GAN", "shapes-cvae-gan", "shapes", 1000, needs=(_JUDGE,)),
}
"""Name -> run; one that is needed comes before those that need it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--together", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--page", action="store_true", help="only write the page anew, of the runs that are there")
    args = parser.parse_args()
    if not args.page:
        train_all(args.together)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page({name: str(REPOSITORY / "runs" / f"siblings-{name}") for name in SIBLINGS}))
    print(PAGE)
    return 0


def train_all(together: int) -> None:
    """Pack the data, then train and evaluate all siblings, ``together`` at a time, each after those that it needs."""
    packed: dict[str, Future[None]] = {}
    runs: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(together) as pool:
        for name, pack in PACKS.items():
            packed[name] = pool.submit(packed_once, name, pack)
        for name, sibling in SIBLINGS.items():
            waits = [packed[sibling.data], *(runs[needed] for needed in sibling.needs)]
            runs[name] = pool.submit(trained, name, sibling, waits)
        for future in (*packed.values(), *runs.values()):
            future.result()


def packed_once(name: str, pack: Pack) -> None:
    """Pack a data set, unless it is there."""
    out = place_of(name)
    if not Path(REPOSITORY, out, "manifest.json").exists():
        changes = {"out": out, **pack.changes}
        v2f("shards", "pack", f"shards/{pack.recipe}.yaml", *(f"{key}={value}" for key, value in changes.items()))


def place_of(data: str) -> str:
    """The folder of a data set."""
    return f"data/siblings-{data}"


def trained(name: str, sibling: Sibling, waits: list[Future[Any]]) -> str:
    """Train and evaluate a run as soon as what it needs is there; its folder."""
    for future in waits:
        future.result()
    recipe = f"launch/recipes/{sibling.recipe}.yaml"
    changes = {key: value.replace("RUN:", "runs/siblings-") for key, value in sibling.changes.items()}
    often = {"train.validate_every": str(max(1, sibling.steps // 4)), "train.checkpoint_every": str(sibling.steps)}
    return finished(
        recipe,
        f"siblings-{name}",
        sibling.steps,
        {**often, **changes},
        data=place_of(sibling.data),
        judged_with=["--classifier", f"runs/siblings-{_JUDGE}"] if _JUDGE in sibling.needs else [],
    )


# ------------------------------------------------------------------------------------------------ page


@dataclass(frozen=True)
class Table:
    """The numbers of a split by one observer: the metrics, and each line's values."""

    title: str
    metrics: list[Metric]
    lines: list[tuple[str, bool, list[str]]]
    """Title, whether it is the run's own, and the values."""


@dataclass(frozen=True)
class Row:
    """What the page shows of a run."""

    name: str
    title: str
    about: str
    verdict: str | None
    sheet: str | None
    """The sample sheet of the last validation, as a data URI."""
    tables: list[Table]


def page(runs: Mapping[str, str]) -> str:
    """The page of the runs that are there: name -> folder."""
    rows = [row(name, folder) for name, folder in runs.items() if Path(folder, "eval.json").exists()]
    base = environment()
    own = jinja2.FileSystemLoader(Path(__file__).parent)
    template = base.overlay(loader=jinja2.ChoiceLoader([own, base.loader or own])).get_template("siblings.html.j2")
    return template.render(rows=rows)


def row(name: str, folder: str) -> Row:
    """What the page shows of the run in ``folder``."""
    run, sibling = Run.open(folder), SIBLINGS[name]
    sheets = sorted(path for path in Path(folder, "samples").glob("*.png") if re.fullmatch(r"step-\d+", path.stem))
    return Row(
        name=name,
        title=sibling.title,
        about=about(REPOSITORY / "launch" / "recipes" / f"{sibling.recipe}.yaml"),
        verdict=last_verdict(build_system(run.config), read_curves(str(Path(folder, "metrics.jsonl")))),
        sheet=data_uri(sheets[-1].read_bytes(), "png") if sheets else None,
        tables=tables(Subject("A", run)),
    )


def about(recipe: Path) -> str:
    """The first sentence of a recipe's header."""
    lines = [line[2:] for line in recipe.read_text().splitlines() if line.startswith("# ")]
    return re.split(r"(?<=\.)\s", " ".join(lines), maxsplit=1)[0]


def tables(subject: Subject) -> list[Table]:
    """The numbers of every split and observer."""
    found = []
    for name, split in (subject.evaluated or {"splits": {}})["splits"].items():
        for by, observed in split["by"].items():
            measured = subject.measured(name)
            own = None if measured is None else measured[0]
            metrics = [metric for metric in METRICS.get(own or "", ()) if metric.by == by]
            lines = []
            for line, numbers in observed["lines"].items():
                values = {**(numbers.get("picture") or {}), **numbers}
                lines.append((line.replace("_", " "), line == own, [shown(metric, values) for metric in metrics]))
            if metrics:
                found.append(Table(f"{split['what']} ({split['people']}); {BY[by]}", metrics, lines))
    return found


def shown(metric: Metric, values: Mapping[str, Any]) -> str:
    """A number of a line, without its interval."""
    value = values.get(metric.key)
    return metric.shown(value["value"] if isinstance(value, Mapping) else value)


if __name__ == "__main__":
    sys.exit(main())
