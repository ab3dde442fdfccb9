"""The sheet of samples of a validation: pictures in a grid, or sounds as players on a self-contained page.

A system that makes pictures from a label has a grid of all its classes, a row each, with the same noise in every sheet.

Shape letters: B samples, C channels, T samples of a sound.
"""

import base64
import html
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.utils import make_grid

from v2f import latent
from v2f.data import media
from v2f.system import Picture, Sound, System, of_kind

_CHANNELS = (1, 3)  # of pictures


def sheet(system: System, shown: Mapping[str, Tensor], notes: Mapping[str, str]) -> tuple[str, bytes] | None:
    """The suffix and content of a sheet with what :meth:`System.sample` returned, outputs and references; None if the
    system makes neither pictures nor sounds."""
    made = system.makes()
    if of_kind(made, Picture):
        pictures = {name: value for name, value in shown.items() if value.ndim == 4 and value.shape[1] in _CHANNELS}
        if latent.asked_label(system) is not None:
            return ".png", _grid(list(pictures.values()), {**notes, "Rows": ", ".join(pictures)})
        return ".png", _grid([value for _, value in sorted(pictures.items(), reverse=True)], notes)
    rates = [sound.rate for _, sound in of_kind(made, Sound)]
    if rates:
        return ".html", _players({name: value for name, value in shown.items() if value.ndim == 3}, rates[0], notes)
    return None


def _grid(shown: Sequence[Tensor], notes: Mapping[str, str]) -> bytes:
    """A PNG with rows of pictures [B,C,H,W] in [-1,1]."""
    rows = [row.float().cpu().clamp(-1, 1) for row in shown]
    grid = make_grid(torch.cat(rows), nrow=len(rows[0]), value_range=(-1, 1), normalize=True, padding=1)
    return media.png(grid * 2 - 1, notes)


def _players(shown: Mapping[str, Tensor], rate: int, notes: Mapping[str, str]) -> bytes:
    """An HTML page with a row for each sample and a player for each name: sounds [B,1,T] in [-1,1]."""
    names = sorted(shown)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = []
    for number in range(min(len(value) for value in shown.values())):
        cells = []
        for name in names:
            content = media.wav(shown[name][number].flatten().float().cpu().numpy(), rate, notes)
            data = base64.b64encode(content).decode()
            cells.append(f'<td><audio controls preload="none" src="data:audio/wav;base64,{data}"></audio></td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title, disclaimer = html.escape(notes.get("Title", "")), html.escape(notes.get("Disclaimer", ""))
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title><body><h1>{title}</h1>'
        f"<p>{disclaimer}</p><table><tr>{head}</tr>{''.join(rows)}</table></body></html>\n"
    ).encode()
