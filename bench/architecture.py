"""Draws the figure of docs/architecture.md: how data flows through the folders of the package.

python bench/architecture.py docs/architecture.png
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from PIL import Image

WIDTH, HEIGHT = 100.0, 66.0  # of the drawing, in units of a hundredth of its width
BOX_WIDTH, BOX_HEIGHT = 20.4, 11.0
COLUMNS = (0.8, 26.8, 52.8, 78.8)  # left edges
CODE, STORED = "#dbe9f6", "#fdf0cf"  # fill colors: a folder of the package, stored data

# Each box: column, bottom edge, color, title, lines below it.
BOXES = {
    "raw": (0, 53, STORED, "Raw data", "VoxCeleb, AVSpeech,\na CSV, a folder;\nsynthetic people"),
    "prepare": (1, 53, CODE, "prepare/", "align, resample,\nencode, pack;\nverify, remove"),
    "shards": (2, 53, STORED, "Shards", "tar files, index.npz,\nmanifest.json with\nall checksums"),
    "data": (3, 53, CODE, "data/", "order, fetch, check,\ndecode in worker\nprocesses"),
    "nets": (0, 33, CODE, "nn/, weights/", "trained modules;\nfrozen nets (yours,\nor standins/)"),
    "systems": (1, 33, CODE, "systems/", "one file per system:\nphases, losses,\nsamples"),
    "engine": (2, 33, CODE, "engine/", "backward, clip, step;\none process, DDP\nor ZeRO"),
    "training": (3, 33, CODE, "training/", "the loop: step, log,\nvalidate, save,\nstop, resume"),
    "generate": (0, 13, CODE, "generate.py, web/", "faces from voices,\nreports, the demo\npage"),
    "evaluation": (1, 13, CODE, "evaluation/", "metrics by referee\nand judge; compares\nruns"),
    "runs": (2, 13, STORED, "Run folder (runs/)", "config.yaml,\ncheckpoints,\nmetrics.jsonl"),
    "tracking": (3, 13, CODE, "tracking/", "spool on disk,\nsent to MLflow in\nthe background"),
}
ACROSS = [  # from, to, what goes there (above the arrow), what comes back (below it)
    ("raw", "prepare", "", ""),
    ("prepare", "shards", "write", ""),
    ("shards", "data", "read", ""),
    ("training", "engine", "batch", "losses"),
    ("engine", "systems", "batch", "losses"),
    ("nets", "systems", "nets", ""),
    ("runs", "evaluation", "", ""),
]


def _edges(name: str) -> tuple[float, float, float]:
    column, bottom = BOXES[name][:2]
    return COLUMNS[column], COLUMNS[column] + BOX_WIDTH, bottom + BOX_HEIGHT / 2


def main(output: str) -> None:
    figure, axes = plt.subplots(figsize=(10, 10 * HEIGHT / WIDTH), dpi=160)
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)

    def box(left: float, bottom: float, width: float, height: float, color: str) -> None:
        style = "round,pad=0,rounding_size=0.9"
        axes.add_patch(FancyBboxPatch((left, bottom), width, height, style, fc=color, ec="#44546a", lw=1.2))

    def arrow(start: tuple[float, float], end: tuple[float, float], heads: str = "-|>") -> None:
        style = {"arrowstyle": heads, "color": "#1f2a3a", "lw": 1.5, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
        axes.annotate("", xy=end, xytext=start, arrowprops=style)

    def line(*points: tuple[float, float]) -> None:
        axes.plot(*zip(*points, strict=True), color="#1f2a3a", lw=1.5, solid_capstyle="butt")

    for column, bottom, color, title, text in BOXES.values():
        middle = COLUMNS[column] + BOX_WIDTH / 2
        box(COLUMNS[column], bottom, BOX_WIDTH, BOX_HEIGHT, color)
        axes.text(middle, bottom + BOX_HEIGHT - 1.1, title, ha="center", va="top", fontsize=12.5, weight="bold")
        axes.text(middle, bottom + BOX_HEIGHT - 3.9, text, ha="center", va="top", fontsize=10.5, linespacing=1.1)
    for start, end, there, back in ACROSS:
        (left, right, middle), (other_left, other_right, _) = _edges(start), _edges(end)
        tip, tail = (other_left, right) if other_left > left else (other_right, left)
        arrow((tail, middle), (tip, middle), "<|-|>" if back else "-|>")
        axes.text((tail + tip) / 2, middle + 0.7, there, ha="center", va="bottom", fontsize=10.5)
        axes.text((tail + tip) / 2, middle - 0.9, back, ha="center", va="top", fontsize=10.5)

    right = COLUMNS[3] + BOX_WIDTH / 2
    arrow((right, 53), (right, 33 + BOX_HEIGHT))
    axes.text(right - 0.8, 48.5, "batches with slot, weight, identity", ha="right", va="center", fontsize=10.5)
    arrow((right + 4, 33), (right + 4, 13 + BOX_HEIGHT))
    axes.text(right + 5, 28.5, "metrics", ha="left", va="center", fontsize=10.5)
    checkpoints = COLUMNS[2] + BOX_WIDTH / 2
    line((right - 4, 33), (right - 4, 28.5), (checkpoints, 28.5))
    arrow((checkpoints, 28.5), (checkpoints, 13 + BOX_HEIGHT))
    axes.text(checkpoints + 1, 29.2, "checkpoints", ha="left", va="bottom", fontsize=10.5)
    line((checkpoints, 13), (checkpoints, 10.6), (COLUMNS[0] + BOX_WIDTH / 2, 10.6))
    arrow((COLUMNS[0] + BOX_WIDTH / 2, 10.6), (COLUMNS[0] + BOX_WIDTH / 2, 13))

    for left, color, text in ((COLUMNS[0], CODE, "code, a folder of v2f/"), (COLUMNS[1], STORED, "stored data")):
        box(left, 47.6, 3, 2, color)
        axes.text(left + 4, 48.5, text, ha="left", va="center", fontsize=10.5)
    box(COLUMNS[0], 1, COLUMNS[3] + BOX_WIDTH - COLUMNS[0], 7.2, CODE)
    axes.text(50, 6.9, "storage/", ha="center", va="top", fontsize=12.5, weight="bold")
    text = "reads and writes of stored data: local disk, s3:// (s3fs), other stores (fsspec); retries, cache, leases"
    axes.text(50, 3.9, text, ha="center", va="top", fontsize=10.5)
    figure.savefig(output)
    Image.open(output).convert("RGB").quantize(48).save(output)


if __name__ == "__main__":
    main(sys.argv[1])
