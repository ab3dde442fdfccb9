"""A page as a browser would take it apart."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image


class Page(HTMLParser):
    """What a browser would load or show."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw = Path(path).read_text()
        self.feed(self.raw)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def stands_alone(self) -> bool:
        """Whether it loads nothing and runs nothing."""
        addresses = [attrs.get("src") or attrs.get("href") or "data:" for _, attrs in self.tags]
        handlers = [name for _, attrs in self.tags for name in attrs if name.startswith("on")]
        return (
            not (self.all("script") or self.all("link") or handlers)
            and all(address.startswith("data:") for address in addresses)
            and not re.search(r"url\(|@import|https?://", self.raw)
        )


def pictures(page: Page) -> list[np.ndarray]:
    """The pictures that it holds."""
    return [pixels(str(image["src"])) for image in page.all("img")]


def pixels(source: str) -> np.ndarray:
    """What a ``data:`` address shows, without the notes that its file holds."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
