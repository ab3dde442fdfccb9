"""A comparison as tables and sentences in the terminal."""

import itertools
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from v2f.evaluation.compare import Comparison, Outcome
from v2f.evaluation.compared_groups import Groups
from v2f.evaluation.observers import BY
from v2f.evaluation.protocol import MEASURED, Metric, percent
from v2f.evaluation.significance import ALPHA
from v2f.metrics import Interval


def show(comparison: Comparison, console: Console) -> None:
    """Print what the page of ``v2f compare`` shows, without its curves and pictures."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    for subject in comparison.subjects:
        say(f"{subject.title}: {subject.run.path}, step {subject.step}, seed {subject.run.config.seed}", "bold")
    different = comparison.differences
    rows = [*itertools.chain(*different.config.values()), *different.some]
    for heading, chosen in (("what differs in the configuration", rows), ("what else differs", different.facts)):
        if chosen:
            table = _table(heading, "", [subject.letter for subject in comparison.subjects])
            for row in chosen:
                table.add_row(*map(Text, (row.key, *row.values)))
            console.print(table)
    if not rows:
        say("nothing differs in the configuration")
    if different.free:
        say(f"differences that do not affect training: {', '.join(row.key for row in different.free)}")
    for split in comparison.splits:
        _show_split(comparison, split, console)
    if comparison.tests:
        say(
            f"* larger than noise: {len(comparison.larger)} of {comparison.tests} differences (Holm: at most a "
            f"{100 * ALPHA:.0f} % chance that any of them is false)"
        )
    for outcome in comparison.larger:
        say(f"{outcome.split}, {outcome.sentence()}", "bold")
    for note in comparison.notes:
        say(f"note: {note}")


def _show_split(comparison: Comparison, split: str, console: Console) -> None:
    chosen = comparison.metrics(split)
    references = comparison.references(split)
    columns = [*(subject.title for subject in comparison.subjects), *(title for title, _ in references)]
    for by, places in comparison.by_observer(split).items():
        what = f"{split}: {MEASURED[split]}, {BY[by]}"
        table = _table(f"{what} (95 % interval over people)", "", columns)
        for at in places:
            metric = chosen[at]
            values = [subject.value(split, metric) for subject in comparison.subjects]
            shown = ["–" if value is None else metric.interval(value) for value in values]
            against = [reference[at] for _, reference in references]
            shown += ["–" if value is None else metric.interval(value) for value in against]
            table.add_row(metric.title, *map(Text, shown))
        console.print(table)
        for heading, rows in (
            (
                f"{what}, differences; * larger than noise",
                [
                    (f"{other.letters} − {one.letters}", [_marked(outcomes[at]) for at in places])
                    for one, other, outcomes in comparison.pairs(split)
                ],
            ),
            (
                f"{what}, the same recipe with other seeds: minimum to maximum",
                [
                    (recipe.letters, [_range(chosen[at], ranges[at]) for at in places])
                    for recipe, ranges in comparison.spread(split)
                ],
            ),
        ):
            if rows:
                table = _table(heading, "", [chosen[at].title for at in places])
                for name, cells in rows:
                    table.add_row(name, *map(Text, cells))
                console.print(table)
    groups = comparison.groups(split)
    if groups is not None:
        _show_groups(f"{split}: {MEASURED[split]}, {BY[groups.by]}", groups, console)


def _show_groups(what: str, groups: Groups, console: Console) -> None:
    """The agreement of each run; its page has the numbers of each group, too."""
    table = _table(f"{what}, agreement of faces with groups of speakers, not tested", "", groups.letters)
    for row in groups.rows:
        if row.group is None:
            cells = [
                f"{percent(value.as_dict())}, chance {100 * chance:.1f}"
                for value, chance in zip(row.values, row.chances, strict=True)
            ]
            table.add_row(row.title, *cells)
    console.print(table)


def _range(metric: Metric, over_seeds: Interval | None) -> str:
    if over_seeds is None:
        return "–"
    return f"{metric.shown(over_seeds.low)} to {metric.shown(over_seeds.high)}"


def _marked(outcome: Outcome) -> str:
    if outcome.difference is None:
        return "–"
    return outcome.metric.shown(outcome.difference.value, sign=True) + (" *" if outcome.larger else "")


def _table(heading: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(heading), title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table
