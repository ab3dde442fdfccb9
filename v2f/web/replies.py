"""What the served page replies to an upload, as HTML; the file is removed whatever the reply is."""

import contextlib
import shutil
import socket
from pathlib import Path
from typing import Any

from v2f import __version__, generate
from v2f.data.audio import UnusableError
from v2f.errors import V2FError
from v2f.given import SHORTEST_S, Given, inputs_in_words
from v2f.web import limits, spectrum
from v2f.web.answer import Listener
from v2f.web.maker import Maker
from v2f.web.page import environment


class ClipReplies:
    """Replies to a clip with the HTML of a face and of how sure it is. The uploaded file is removed first."""

    def __init__(self, listener: Listener, folder: str, bounds: limits.Limits) -> None:
        self._listener, self._folder, self._bounds = listener, folder, bounds
        self._rate = limits.Rate(bounds.per_minute)
        self._environment = environment()

    def __call__(self, path: str | None, client: str) -> str:
        content = None if path is None else take(path, self._folder)
        wait = self._rate.take(client)
        if wait:
            return self._refused(f"at most {self._bounds.per_minute} clips per minute are answered; wait {wait:.0f} s")
        if content is None:
            return self._refused("no clip arrived; record or drop it again")
        if len(content) > self._bounds.max_bytes:
            return self._refused(
                f"the file has {len(content) / 1e6:.3g} MB, the limit is {self._bounds.max_mb:g} MB; give a shorter one"
            )
        try:
            answer = self._listener.answer(content, self._bounds.max_seconds)
        except UnusableError as error:
            return self._refused(f"{error}; give {self.wanted}")
        except V2FError as error:
            return self._refused(str(error))
        return self._render(
            "answer.html.j2",
            answer=answer,
            run=self._listener.run.config.name,
            reference=self._listener.reference,
            without=self._listener.without,
            hears=self._listener.ear.seconds,
            width=spectrum.WIDTH,
            height=spectrum.HEIGHT,
        )

    @property
    def wanted(self) -> str:
        return f"a recording of one voice, of {SHORTEST_S:g} to {self._bounds.max_seconds:g} s"

    def opening(self) -> str:
        listener = self._listener
        return self._render(
            "opening.html.j2",
            run=listener.run.config.name,
            step=listener.step,
            system=listener.run.config.system.name,
            stand_ins=list(listener.system.stand_ins),
            retrieval=listener.retrieval,
        )

    def hint(self) -> str:
        wanted = self.wanted[0].upper() + self.wanted[1:]
        return self._environment.from_string(
            '<p class="small soft hint">{{ wanted }}, at most {{ mb }} MB, in any format. You get the answer as soon '
            "as you stop, or drop it; then it is deleted.</p>"
        ).render(wanted=wanted, mb=f"{self._bounds.max_mb:g}")

    def closing(self) -> str:
        where = socket.gethostname()
        return self._render("closing.html.j2", version=__version__, where=where, disclaimer=generate.DISCLAIMER)

    def _refused(self, why: str) -> str:
        return self._render("refusal.html.j2", why=why)

    def _render(self, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(**values)


class MakerReplies:
    """Replies to what a visitor gives with the HTML of what the run makes of it. Uploaded files are removed first."""

    def __init__(self, maker: Maker, folder: str, bounds: limits.Limits) -> None:
        self._maker, self._folder, self._bounds = maker, folder, bounds
        self._rate = limits.Rate(bounds.per_minute)

    def __call__(self, values: dict[str, Any], client: str) -> str:
        given = {what: value for what, value in values.items() if value is not None}
        files = {what: given.pop(what) for what in ("voice", "photo", "video") if what in given}
        lost = ""
        with contextlib.ExitStack() as removed:  # only after all are read: two widgets may hold the same file
            for path in files.values():
                removed.callback(remove, path, self._folder)
            for what, path in files.items():
                try:
                    given[what] = Path(path).read_bytes()
                except OSError:
                    lost = what
        wait = self._rate.take(client)
        if wait:
            return self._refused(
                f"at most {self._bounds.per_minute} requests per minute are answered; wait {wait:.0f} s"
            )
        if lost:
            return self._refused(f"the {lost} is gone, since unused files are soon removed; drop it again")
        for what in files:
            if len(given[what]) > self._bounds.max_bytes:
                megabytes = len(given[what]) / 1e6
                return self._refused(f"the {what} has {megabytes:.3g} MB, the limit is {self._bounds.max_mb:g} MB")
        try:
            made = self._maker.make(Given(**given), self._bounds.max_seconds)
        except V2FError as error:
            return self._refused(str(error))
        return self._render(
            "made_of.html.j2",
            things=made.things,
            run=self._maker.run.name,
            title=made.notes["Title"],
            disclaimer=made.notes["Disclaimer"],
        )

    def opening(self) -> str:
        maker = self._maker
        return self._render(
            "maker.html.j2",
            run=maker.run.name,
            step=maker.step,
            system=maker.run.kind,
            stand_ins=list(maker.system.stand_ins),
            makes=list(maker.system.makes()),
            asked=inputs_in_words(maker.system),
            title=generate.provenance(maker.run, maker.system, step=maker.step)["Title"],
        )

    def _refused(self, why: str) -> str:
        return self._render("refusal.html.j2", why=why, nothing="Nothing")

    def _render(self, template: str, **values: Any) -> str:
        return environment().get_template(template).render(**values)


def take(path: str, folder: str) -> bytes:
    """The bytes of an upload in ``folder``; the file and the folder that Gradio made for it are removed."""
    try:
        return Path(path).read_bytes()
    finally:
        remove(path, folder)


def remove(path: str, folder: str) -> None:
    """Remove an upload in ``folder``, and the folder that Gradio made for it."""
    file = Path(path)
    file.unlink(missing_ok=True)
    if file.parent != Path(folder):
        shutil.rmtree(file.parent, ignore_errors=True)
