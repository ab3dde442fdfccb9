"""What the rounds of bench/step.py add up to: summary, text tables, a bar chart and a roofline.

All of it is computed from the raw numbers in the result file, at any time.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Found = dict[str, Any]
REFERENCE = "baseline fp32"
NAMES = {"perceptual": "LPIPS", "identity": "identity net", "codes": "code encoder"}
PARTS = ("encoder", "mapping", "generator", "perceptual", "identity", "codes", "losses")
ORDER = (*(f"{part} forward" for part in PARTS), *(f"{part} backward" for part in reversed(PARTS)))
ADAM_BYTES = 28  # a parameter in float32: weight, gradient and two moments read, weight and moments written


def spread(values: Iterable[float]) -> list[float]:
    """Median, least, most."""
    values = list(values)
    return [statistics.median(values), min(values), max(values)]


# ------------------------------------------------------------------------------------------------ summary


def utilisation(flops_a_sample: float, samples_a_second: float, product_flops_a_second: float) -> float:
    """Model FLOPs utilisation: what the model's function needs, over what a matrix product reaches in the same time
    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B, with the measured product for the nominal peak)."""
    return flops_a_sample * samples_a_second / product_flops_a_second


def floor(flops: float, product_bytes: float, all_bytes: float, flops_a_second: float, bytes_a_second: float) -> float:
    """Seconds that a part takes at least: its products at the rate of a matrix product, or the bytes that they read and
    write, whichever takes longer. A part without products has to read and write what it does."""
    if not flops:
        return all_bytes / bytes_a_second
    return max(flops / flops_a_second, product_bytes / bytes_a_second)


def summary(size: Found) -> Found:
    """By arm: samples a second, what it gains over the reference, milliseconds a sample by part, memory, MFU."""
    found = {}
    for arm in dict.fromkeys(name for each in size["rounds"] for name in each["arms"]):
        about = size["arms"][arm]
        rounds = [each for each in size["rounds"] if arm in each["arms"]]
        batch = about["batch"]
        rates = [batch / statistics.median(each["arms"][arm]["seconds"]) for each in rounds]
        own: Found = {"samples a second": spread(rates), "rounds": len(rates)}
        pairs = [
            rate * statistics.median(each["arms"][REFERENCE]["seconds"]) / size["arms"][REFERENCE]["batch"]
            for rate, each in zip(rates, rounds, strict=True)
            if REFERENCE in each["arms"]
        ]
        if pairs and arm != REFERENCE:
            own[f"times {REFERENCE}"] = spread(pairs)
        steps = [step for each in rounds for step in each["arms"][arm]["parts"]]
        labels = dict.fromkeys(label for step in steps for label in step)
        own["ms a sample"] = {
            label: 1000 / batch * statistics.median(step.get(label, 0.0) for step in steps) for label in labels
        }
        peaks = [each["arms"][arm]["peak bytes"] for each in rounds if each["arms"][arm].get("peak bytes")]
        memory = size.get("memory", {}).get(arm)
        if peaks or memory:
            peak, weights = max(peaks or [memory["peak bytes"]]), (memory or about)["weights and moments"]
            own["GB at the peak"], own["GB beyond weights and moments"] = peak / 1e9, (peak - weights) / 1e9
        if "work" in size:
            needed = needed_flops(size, arm)
            own["MFU"] = spread(
                utilisation(needed, rate, each["FLOP/s"][about["precision"]])
                for rate, each in zip(rates, rounds, strict=True)
            )
        found[arm] = own
    return found


def needed_flops(size: Found, arm: str) -> float:
    """FLOPs a sample of the arm's function, however the arm computes it: those of ours."""
    kind = "ours, stored" if "stored" in size["arms"][arm]["kind"] else "ours"
    kinds = (f"{kind} fp32", f"{kind} bf16")
    return float(sum(part["flops"] for part in next(size["work"][k] for k in kinds if k in size["work"]).values()))


def roofline(size: Found, arm: str) -> list[Found]:
    """Each part of an arm's step, a sample: work, floor, time, and how many times the floor that is."""
    about = size["arms"][arm]
    work = size["work"][f"{about['kind']} {'bf16' if about['precision'] == 'bf16' else 'fp32'}"]
    took = summary(size)[arm]["ms a sample"] if size["rounds"] else {}
    machines = size["rounds"] or ([size["assumed"]] if "assumed" in size else [])
    precision = about["precision"]
    peaks = [(each["FLOP/s"][precision], each["bytes/s"]) for each in machines if precision in each["FLOP/s"]]
    rows = []
    work = {label: work[label] for label in ORDER if label in work} | {
        "optimizer": optimizer_work(size, about["batch"])
    }
    for label, part in work.items():
        row = {"part": label, **part, "ms": took.get(label)}
        if peaks:
            least = [floor(part["flops"], part["product bytes"], part["bytes"], *peak) for peak in peaks]
            row["floor ms"] = 1000 * statistics.median(least)
            row["times the floor"] = None if row["ms"] is None else row["ms"] / row["floor ms"]
        rows.append(row)
    return rows


def optimizer_work(size: Found, batch: int) -> Found:
    moved = ADAM_BYTES * size["parameters"]["trained"] / batch
    return {"flops": 0, "product bytes": 0, "bytes": moved}


# ------------------------------------------------------------------------------------------------ tables


def tables(found: Found) -> str:
    """Every size: its arms, its parts, its data."""
    text = []
    for name, size in found["sizes"].items():
        about = ", ".join(f"{key} {value}" for key, value in size["about"].items())
        text.append(f"{name}: {about}")
        if size.get("loss"):
            text.append(
                "loss of ours {ours:.6g}, of the baseline {baseline:.6g}: {apart:.1e} apart".format(**size["loss"])
            )
        if size["rounds"]:
            text += ["", arms_table(size)]
        if "assumed" in size:
            flops, moved = size["assumed"]["FLOP/s"]["bf16"], size["assumed"]["bytes/s"]
            text.append(f"floors: assumed {flops / 1e12:g} TFLOP/s in bf16 and {moved / 1e12:g} TB/s")
        if "work" in size:
            for arm in shown(size):
                text += ["", f"{name}, {arm}, a sample:", parts_table(roofline(size, arm))]
        for reader, each in size.get("data", {}).items():
            text.append(f"data, {reader}: {_range(each['ms a sample'])} ms a sample")
        text += [f"FAILED {arm}: {why}" for arm, why in size.get("failed", {}).items()]
        text.append("")
    return "\n".join(text)


def shown(size: Found) -> list[str]:
    """The arms whose parts are listed: the baseline and ours as they are, and the fastest of ours."""
    if not size["rounds"]:
        return [arm for arm in size["arms"] if arm in (REFERENCE, "ours fp32", "ours bf16")]
    there = [arm for arm in (REFERENCE, "ours fp32", "ours bf16") if arm in summary(size)]
    return there


def arms_table(size: Found) -> str:
    heads = ["arm", "samples/s", f"x {REFERENCE}", "forward", "backward", "optimizer", "GB", "GB beyond", "MFU %"]
    rows = []
    for arm, own in summary(size).items():
        ms = own["ms a sample"]
        times = own.get(f"times {REFERENCE}")
        rows.append(
            [
                arm,
                _range(own["samples a second"]),
                "" if times is None else _range(times),
                *(f"{sum(v for k, v in ms.items() if k.endswith(way)):.1f}" for way in ("forward", "backward")),
                f"{ms.get('optimizer', 0.0):.1f}",
                *(_three(own.get(f"GB {what}")) for what in ("at the peak", "beyond weights and moments")),
                _range([100 * value for value in own["MFU"]]) if "MFU" in own else "",
            ]
        )
    return aligned([heads, *rows])


def parts_table(rows: Sequence[Found]) -> str:
    heads = ["part", "GFLOP", "MB of products", "MB in all", "floor ms", "ms", "x floor"]
    lines = []
    for row in [*rows, total(rows)]:
        numbers = [row["flops"] / 1e9, row["product bytes"] / 1e6, row["bytes"] / 1e6]
        floors = [row.get("floor ms"), row["ms"], row.get("times the floor")]
        lines.append([named(row["part"]), *map(_three, [*numbers, *floors])])
    return aligned([heads, *lines])


def total(rows: Sequence[Found]) -> Found:
    """The sum of the parts."""
    found: Found = {key: sum(row[key] for row in rows) for key in ("flops", "product bytes", "bytes")}
    found |= {"part": "all", "ms": None}
    if rows and "floor ms" in rows[0]:
        found["floor ms"] = sum(row["floor ms"] for row in rows)
        if all(row["ms"] is not None for row in rows):
            found["ms"] = sum(row["ms"] for row in rows)
            found["times the floor"] = found["ms"] / found["floor ms"]
    return found


def named(label: str) -> str:
    part, _, way = label.partition(" ")
    return f"{NAMES.get(part, part)} {way}".strip()


def _three(value: float | None) -> str:
    """Three digits, or none where nothing was measured."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _range(three: Sequence[float]) -> str:
    middle, least, most = map(_three, three)
    return f"{middle} ({least} to {most})"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


# ------------------------------------------------------------------------------------------------ pictures

COLOURS = {
    "encoder": "#1f4e9c",
    "mapping": "#2a9d8f",
    "generator": "#c0392b",
    "perceptual": "#e9a23b",
    "identity": "#8e44ad",
    "codes": "#7a5c3e",
    "losses": "#9aa0a6",
    "optimizer": "#333333",
}


def draw(found: Found, folder: Path, stem: str) -> list[Path]:
    """``STEM-bars.png`` and ``STEM-roofline.png``, from the sizes that have been measured."""
    import matplotlib

    matplotlib.use("Agg")
    measured = {name: size for name, size in found["sizes"].items() if size["rounds"] and "work" in size}
    if not measured:
        return []
    paths = [folder / f"{stem}-bars.png", folder / f"{stem}-roofline.png"]
    for path, paint in zip(paths, (_bars, _roofs), strict=True):
        figure = paint(found, measured)
        figure.savefig(path, dpi=110)
        matplotlib.pyplot.close(figure)
    return paths


def _caption(found: Mapping[str, Any]) -> str:
    computed = ", one thread, seconds computed" if found["seconds"] != "passed" else ""
    return f"{found['device']}{computed}, {found['date']}, torch {found['versions']['torch']}"


def _bars(found: Found, measured: Mapping[str, Found]) -> Any:
    """Milliseconds a sample of every arm, by part; a panel for each size."""
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    heights = [len(summary(size)) for size in measured.values()]
    figure, axes = pyplot.subplots(
        len(measured),
        1,
        figsize=(10, 1.6 + 0.55 * sum(heights) + 0.7 * len(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (name, size), ax in zip(measured.items(), axes[:, 0], strict=True):
        arms = summary(size)
        for row, own in enumerate(arms.values()):
            left, ms = 0.0, own["ms a sample"]
            for part in (*PARTS, "optimizer"):
                for way, hatch in ((" forward", ""), (" backward", "////"), ("", "")):
                    width = ms.get(part + way, 0.0)
                    if width:
                        ax.barh(row, width, left=left, color=COLOURS[part], hatch=hatch, edgecolor="white", height=0.72)
                        left += width
            ax.text(left, row, f"  {own['samples a second'][0]:.3g} samples/s", va="center", fontsize=9)
        ax.set_yticks(range(len(arms)), list(arms))
        ax.invert_yaxis()
        ax.set_xlim(0, 1.22 * max(sum(own["ms a sample"].values()) for own in arms.values()))
        ax.set_title(f"{name}: {size['about']['in short']}", fontsize=10, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("ms a sample (median of the steps of all rounds)")
    keys = [Patch(color=COLOURS[part], label=NAMES.get(part, part)) for part in COLOURS]
    keys.append(Patch(facecolor="#cccccc", edgecolor="white", hatch="////", label="backward"))
    figure.legend(handles=keys, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(f"A training step by part\n{_caption(found)}", fontsize=11)
    return figure


def _roofs(found: Found, measured: Mapping[str, Found]) -> Any:
    """FLOP/s over FLOP a byte (of the products): each part of the arms :func:`shown`, under the machine's roofs."""
    import numpy as np
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = pyplot.subplots(
        1, len(measured), figsize=(1.5 + 5.6 * len(measured), 5.6), squeeze=False, layout="constrained", sharey=True
    )
    markers = {REFERENCE: ("s", "none"), "ours fp32": ("o", "full"), "ours bf16": ("^", "full")}
    lowest, highest = [], 0.0
    for (name, size), ax in zip(measured.items(), axes[0], strict=True):
        reach = []
        for arm in shown(size):
            marker, fill = markers[arm]
            for row in roofline(size, arm):
                part, way = (*row["part"].split(" "), "")[:2]
                if not row["flops"] or not row["ms"]:
                    continue
                x, y = row["flops"] / row["product bytes"], row["flops"] / row["ms"] * 1000
                reach.append(x)
                lowest.append(y)
                face = COLOURS[part] if fill == "full" else "white"
                size_of = 70 if way == "forward" else 30
                ax.scatter(x, y, marker=marker, s=size_of, facecolor=face, edgecolor=COLOURS[part], zorder=3)
        peaks = {
            precision: statistics.median(each["FLOP/s"][precision] for each in size["rounds"])
            for precision in size["rounds"][0]["FLOP/s"]
        }
        wide = statistics.median(each["bytes/s"] for each in size["rounds"])
        xs = np.geomspace(min(*reach, min(peaks.values()) / wide) / 2, max(reach) * 2, 200)
        for precision, peak in peaks.items():
            ax.loglog(xs, np.minimum(peak, wide * xs), lw=1, color="#555555")
            ax.text(xs[-1], peak * 1.04, f"{precision} product: {peak / 1e9:,.0f}", ha="right", fontsize=8)
            highest = max(highest, peak)
        ax.text(1.3 * xs[0], 1.05 * wide * xs[0], f"copy: {wide / 1e9:,.0f} GB/s", fontsize=8, va="top")
        lowest.append(wide * xs[0])
        ax.set_title(f"{name}: {size['about']['in short']}", fontsize=10, loc="left")
        ax.set_xlabel("FLOP a byte that the part's products read and write")
        ax.grid(True, which="major", alpha=0.25)
    axes[0, 0].set_ylabel("GFLOP/s")
    axes[0, 0].set_ylim(min(lowest) / 1.5, highest * 1.4)
    for axis, unit in ((axes[0, 0].yaxis, 1e9), *((ax.xaxis, 1) for ax in axes[0])):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _, unit=unit: f"{value / unit:,.4g}")
        axis.set_minor_locator(NullLocator())
    keys: list[Any] = [
        Line2D([], [], ls="", marker=m, mfc="#777777" if fill == "full" else "white", mec="#777777", label=arm)
        for arm, (m, fill) in markers.items()
    ]
    keys += [
        Line2D([], [], ls="", marker="o", color="#777777", ms=s, label=w) for s, w in ((8, "forward"), (5, "backward"))
    ]
    there = {
        row["part"].split(" ")[0]
        for size in measured.values()
        for a in shown(size)
        for row in roofline(size, a)
        if row["flops"]
    }
    keys += [Line2D([], [], ls="", marker="o", color=COLOURS[p], label=NAMES.get(p, p)) for p in COLOURS if p in there]
    figure.legend(
        handles=keys, loc="outside lower center", ncols=4 if len(measured) == 1 else 7, frameon=False, fontsize=9
    )
    figure.suptitle(f"Roofline of the parts\n{_caption(found)}", fontsize=11)
    return figure
