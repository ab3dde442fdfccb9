"""Draws the figure of docs/architecture.md: how data flows through the folders of the package.

python bench/architecture.py docs/architecture.png
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from PIL import Image

WIDTH, HEIGHT = 100.0, 84.0  # of the drawing, in units of a hundredth of its width
BOX_WIDTH, BOX_HEIGHT = 19.4, 12.0
COLUMNS = (0.6, 26.6, 52.6, 77.6)  # left edges
ROWS = (71.4, 50.6, 31.4, 12.2)  # bottom edges
CODE, STORED, INK = "#dbe9f6", "#fdf0cf", "#1f2a3a"  # fill colors: a folder of the package, stored data; lines
TITLE, TEXT = 12.4, 11.2  # font sizes in points; the figure is 720 points wide

# Each box: column, row, color, title, lines below it.
BOXES = {
    "raw": (0, 0, STORED, "Raw data", "VoxCeleb, AVSpeech,\na CSV, a folder;\nsynthetic people"),
    "prepare": (1, 0, CODE, "prepare/", "align, resample,\nencode, pack;\nverify, remove"),
    "shards": (2, 0, STORED, "Shards", "tar files, index.npz,\nmanifest.json with\nall checksums"),
    "data": (3, 0, CODE, "data/", "order, fetch, check,\ndecode in worker\nprocesses"),
    "systems": (0, 1, CODE, "systems/", "one file per system:\nphases, losses,\noutputs"),
    "engine": (1, 1, CODE, "engine/", "backward, clip, step;\none process, DDP\nor ZeRO"),
    "training": (2, 1, CODE, "training/", "the loop: step, log,\nvalidate, save, stop,\nresume"),
    "evaluation": (3, 1, CODE, "evaluation/", "scores from\nindependent face\nnets; compares runs"),
    "nets": (0, 2, CODE, "Nets", "nn/ (layers),\nencoders/ (for voices),\nweights/, standins/\n(frozen nets)"),
    "tracking": (1, 2, CODE, "tracking/", "a spool on disk,\nsent to MLflow in\nthe background"),
    "runs": (2, 2, CODE, "runs/", "configuration,\ncheckpoints,\nexports"),
    "web": (3, 2, CODE, "generate.py, web/", "faces from voices,\nreports, the demo\npage"),
    "mlflow": (1, 3, STORED, "MLflow", "curves, samples and\nsettings of all runs"),
    "folder": (2, 3, STORED, "Run folder", "config.yaml,\ncheckpoints,\nmetrics.jsonl"),
}


class Figure:
    """The drawing: boxes, arrows along several points, and labels."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def rectangle(self, left: float, bottom: float, width: float, height: float, color: str) -> None:
        style = "round,pad=0,rounding_size=0.9"
        self.axes.add_patch(FancyBboxPatch((left, bottom), width, height, style, fc=color, ec="#44546a", lw=1.2))

    def box(self, name: str) -> None:
        column, row, color, title, text = BOXES[name]
        middle, top = COLUMNS[column] + BOX_WIDTH / 2, ROWS[row] + BOX_HEIGHT
        self.rectangle(COLUMNS[column], ROWS[row], BOX_WIDTH, BOX_HEIGHT, color)
        self.axes.text(middle, top - 1.1, title, ha="center", va="top", fontsize=TITLE, weight="bold")
        self.axes.text(middle, top - 4.2, text, ha="center", va="top", fontsize=TEXT, linespacing=1.12)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line along ``points`` with a head at the last one."""
        self.axes.plot(*zip(*points[:-1], strict=True), color=INK, lw=1.5, solid_capstyle="butt")
        style = {"arrowstyle": "-|>", "color": INK, "lw": 1.5, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
        self.axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)

    def label(self, x: float, y: float, text: str, ha: str = "center", va: str = "center") -> None:
        self.axes.text(x, y, text, ha=ha, va=va, fontsize=TEXT)


def edges(name: str) -> tuple[float, float, float, float, float, float]:
    """Left, center and right x, and bottom, center and top y of a box."""
    left, bottom = COLUMNS[BOXES[name][0]], ROWS[BOXES[name][1]]
    return left, left + BOX_WIDTH / 2, left + BOX_WIDTH, bottom, bottom + BOX_HEIGHT / 2, bottom + BOX_HEIGHT


def draw_rows(figure: Figure) -> None:
    """The arrows between neighbors in a row: data on its way to the loop, batches and losses within it."""
    for start, end, text in (("raw", "prepare", ""), ("prepare", "shards", "write"), ("shards", "data", "read")):
        tail, tip, y = edges(start)[2], edges(end)[0], edges(start)[4]
        figure.arrow((tail, y), (tip, y))
        figure.label((tail + tip) / 2, y + 1.6, text)
    for left, right in (("systems", "engine"), ("engine", "training")):
        from_x, to_x, y = edges(left)[2], edges(right)[0], edges(left)[4]
        figure.arrow((to_x, y + 1.5), (from_x, y + 1.5))
        figure.label((from_x + to_x) / 2, y + 3.1, "batch")
        figure.arrow((from_x, y - 1.5), (to_x, y - 1.5))
        figure.label((from_x + to_x) / 2, y - 3.3, "losses")


def draw_columns(figure: Figure) -> None:
    """The arrows between rows."""
    _, x, _, _, _, top = edges("nets")
    figure.arrow((x, top), (x, edges("systems")[3]))
    figure.label(x + 1, (top + edges("systems")[3]) / 2, "modules", ha="left")

    left, x, right, bottom, _, top = edges("training")
    between = (edges("data")[3] + top) / 2
    figure.arrow((edges("data")[1], edges("data")[3]), (edges("data")[1], between), (x, between), (x, top))
    figure.label((x + edges("data")[1]) / 2, between + 1.5, "batches")
    between = (bottom + edges("runs")[5]) / 2
    figure.arrow((x + 2, bottom), (x + 2, edges("runs")[5]))
    figure.label(x + 1, between, "save", ha="right")
    figure.arrow((x + 4, edges("runs")[5]), (x + 4, bottom))
    figure.label(right - 5, between, "resume", ha="left")
    x = edges("tracking")[1]
    figure.arrow((left + 2, bottom), (left + 2, between), (x, between), (x, edges("tracking")[5]))
    figure.label((x + left + 2) / 2, between + 1.5, "metrics")

    left, x, _, _, _, top = edges("folder")
    between = (top + edges("runs")[3]) / 2
    figure.arrow((x + 2, edges("runs")[3]), (x + 2, top))
    _, middle, right, bottom, _, _ = edges("tracking")
    figure.arrow((middle, bottom), (middle, edges("mlflow")[5]))
    figure.arrow((right - 2, bottom), (right - 2, between), (left + 3, between), (left + 3, top))
    figure.label((right + left + 1) / 2, between + 1.5, "metrics.jsonl")


def draw_readers(figure: Figure) -> None:
    """What evaluation and the pages read: samples along the right margin, runs along the last gap."""
    _, _, x, _, y, _ = edges("data")
    margin = x + 1.8
    start = edges("folder")[2], edges("folder")[4]
    gap = (start[0] + edges("web")[0]) / 2
    for name in ("evaluation", "web"):
        left, _, right, _, middle, _ = edges(name)
        figure.arrow((x, y), (margin, y), (margin, middle), (right, middle))
        figure.arrow(start, (gap, start[1]), (gap, middle), (left, middle))
    figure.label(margin - 0.8, (edges("data")[3] + edges("evaluation")[5]) / 2, "samples", ha="right")
    figure.label(gap + 1, start[1], "checkpoints,\nconfiguration,\nmetrics", ha="left")


def draw_rest(figure: Figure) -> None:
    """The legend, and the package below everything that is stored."""
    bottom = ROWS[3]
    for color, text in ((CODE, "code in v2f/"), (STORED, "stored data")):
        figure.rectangle(COLUMNS[0], bottom + 3, 3, 2.4, color)
        figure.label(COLUMNS[0] + 4, bottom + 4.2, text, ha="left")
        bottom += 4.4
    figure.rectangle(COLUMNS[0], 1, COLUMNS[3] + BOX_WIDTH - COLUMNS[0], 7.6, CODE)
    figure.axes.text(50, 7.5, "storage/", ha="center", va="top", fontsize=TITLE, weight="bold")
    text = "reads and writes all stored data: local disk, s3:// (s3fs), other stores (fsspec); retries, cache, leases"
    figure.axes.text(50, 4.4, text, ha="center", va="top", fontsize=TEXT)


def main(output: str) -> None:
    sheet, axes = plt.subplots(figsize=(10, 10 * HEIGHT / WIDTH), dpi=160)
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    sheet.subplots_adjust(0, 0, 1, 1)
    figure = Figure(axes)
    for name in BOXES:
        figure.box(name)
    draw_rows(figure)
    draw_columns(figure)
    draw_readers(figure)
    draw_rest(figure)
    sheet.savefig(output)
    Image.open(output).convert("RGB").quantize(48).save(output)


if __name__ == "__main__":
    main(sys.argv[1])
