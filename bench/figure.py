"""The README's picture: references of unseen people above the faces made from their voices, out of a run's report.

python bench/figure.py runs/quickstart docs/quickstart.png
"""

import base64
import io
import sys

from PIL import Image, ImageDraw, ImageFont

from v2f.data.manifest import open_dataset
from v2f.runs.run import Run
from v2f.web.report import pairs

PEOPLE, SIDE, GAP, LABEL = 10, 128, 6, 190
ROWS = {"reference": "(a) reference", "face": "(b) from the voice", "possible": "(c) knowable\nfrom a voice"}


def main(run_path: str, output: str) -> None:
    run = Run.open(run_path)
    people = pairs(open_dataset(run.config.data.home), "test", run.system(), PEOPLE)
    sheet = Image.new("RGB", (LABEL + PEOPLE * (SIDE + GAP), len(ROWS) * (SIDE + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for row, (name, label) in enumerate(ROWS.items()):
        top = row * (SIDE + GAP)
        draw.multiline_text((0, top + SIDE // 2), label, "black", font, anchor="lm")
        for column, person in enumerate(people):
            data = base64.b64decode(getattr(person, name).split(",", 1)[1])
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
                large = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(large, (LABEL + column * (SIDE + GAP), top))
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
