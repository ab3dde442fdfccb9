"""The page to speak into: ``v2f serve RUN``, by Gradio.

    browser --clip--> Gate --> Gradio --> a file in a folder of our own --read and removed--> Listener --> HTML

A clip is removed as soon as it was read, whatever comes of it; what comes of it goes back as HTML with its pictures
inside, so that no file of it lies anywhere. Nothing is sent to anybody else: Gradio's telemetry is off, the fonts are
the reader's own, and the headers forbid the page to load or send anything elsewhere.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2f import __version__, generate
from v2f.data.audio import UnusableError
from v2f.errors import V2FError
from v2f.runs.run import Run
from v2f.system import Label
from v2f.web import limits, spectrum
from v2f.web.answer import Listener
from v2f.web.maker import Maker
from v2f.web.page import environment

LOOPBACK = ("127.0.0.1", "localhost", "::1")
USER, PASSWORD = "V2F_SERVE_USER", "V2F_SERVE_PASSWORD"
_QUEUE = 16  # clips that wait while one is answered
_FORGOTTEN_S = 60.0  # after which an upload that nobody asked an answer for is removed
_QUIETLY = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_SHARE": "False",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one clip, and one client, may ask for."""

    max_seconds: float = 30.0
    max_mb: float = 20.0
    per_minute: int = 12
    """Clips of one client."""

    @property
    def max_bytes(self) -> int:
        return round(self.max_mb * 1e6)


def serve(
    run: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    which: str | int = "latest",
    bounds: Limits = Limits(),
    root_path: str = "",
) -> None:
    """Serve the page of ``run`` until it is interrupted.

    ``host``: beyond loopback everybody who reaches it may use the page, unless V2F_SERVE_USER and V2F_SERVE_PASSWORD
    are set; a browser gives a microphone to https and to loopback only. ``port`` 0: any that is free. ``which``: the
    checkpoint. ``root_path``: where a proxy shows the page, such as ``/voice``. V2FError without Gradio, for a run
    of a kind that no page can ask for or show, and for a port that is taken.
    """
    login = _login()
    with (
        _listen(host, port) as listening,
        tempfile.TemporaryDirectory(prefix="v2f-serve-") as folder,
        _leaving_on_sigterm(),
    ):
        _gradio(folder)
        import uvicorn

        opened = Run.open(run)
        print(f"loading {run}, and what it is compared with ...", flush=True)
        listener = _opened(opened, which)
        if isinstance(listener, Listener) and listener.without:
            print(f"note: nothing to compare a voice with, so the page says less: {listener.without}")
        port = listening.getsockname()[1]
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}{root_path}  (stop with Ctrl-C)", flush=True)
        if host not in LOOPBACK:
            who = "whoever has the login" if login else "everybody who reaches it"
            print(
                f"note: {host} is more than this machine: {who} can use the page, unencrypted. Put it behind a proxy "
                f"with https, which the microphone needs, too; a login is set by {USER} and {PASSWORD}",
                flush=True,
            )
        config = uvicorn.Config(
            application(listener, folder, bounds, login, root_path),
            log_level="warning",
            access_log=False,  # who spoke, and when, is nobody's business
            server_header=False,
            limit_concurrency=256,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _opened(run: Run, which: str | int) -> "Listener | Maker":
    """The run as its page has it: one that makes a face of a voice, or anything else of anything else."""
    system = run.system(which=which)
    kind = Listener if generate.is_face_of_voice(system) else Maker
    return kind(run, which, system)


def application(
    listener: Listener | Maker, folder: str, bounds: Limits, login: tuple[str, str] | None = None, root_path: str = ""
) -> Any:
    """The ASGI application of a page; uploads lie in ``folder``, which must be this page's own, while they are read."""
    gradio = _gradio(folder)
    import fastapi

    parent = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_sweeping(folder))

    @parent.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    # Once more inside of Gradio's container: what Gradio resets there, headings and lists, is to look as everywhere.
    look = environment().from_string(
        '<meta name="robots" content="noindex"><style>{% include "style.css.j2" %}'
        '.gradio-container { {% include "style.css.j2" %} } {% include "serve.css.j2" %}</style>'
    )
    mounted = gradio.mount_gradio_app(
        parent,
        _page(listener, folder, bounds) if isinstance(listener, Listener) else _maker_page(listener, folder, bounds),
        path="/",
        root_path=root_path or None,
        auth=None if login is None else _checked(login),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
        max_file_size=bounds.max_bytes,
        blocked_paths=[],
        theme=_theme(gradio),
        head=look.render(),
    )
    # A clip is an upload and a call; its own limit, which answers in words, comes first.
    rate = limits.Rate(3 * bounds.per_minute)
    mounted.add_middleware(limits.Gate, folder=folder, max_bytes=bounds.max_bytes, rate=rate)
    if root_path:
        mounted.add_middleware(limits.Under, root=root_path)
    return mounted


def _page(listener: Listener, folder: str, bounds: Limits) -> Any:
    """Gradio's blocks: head, recorder, answer, foot."""
    import gradio

    answer = Answering(listener, folder, bounds)

    def asked(path: str | None, request: gradio.Request) -> tuple[None, str]:
        return None, answer(path, limits.client_of(request))

    title = f"A face for a voice · {listener.run.config.name}"
    with gradio.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gradio.HTML(answer.opening(), apply_default_css=False)
        with gradio.Row(equal_height=True):
            microphone = gradio.Audio(
                sources=["microphone"], type="filepath", label="Speak", editable=False, buttons=[], elem_id="microphone"
            )
            # Any file, and not Gradio's idea of a sound: what is none is refused here, in words, and a video is heard.
            clip = gradio.File(label="Or drop a recording", elem_id="clip", height=150, buttons=[])
            clip.preprocess = _where  # type: ignore[assignment, method-assign]  # Gradio's own leaves an empty file each time
        gradio.HTML(answer.hint(), apply_default_css=False)
        shown = gradio.HTML("", elem_id="answer", apply_default_css=False)
        gradio.HTML(answer.closing(), apply_default_css=False)
        for source, event in ((microphone, microphone.stop_recording), (clip, clip.upload)):
            event(
                asked,
                inputs=source,
                outputs=[source, shown],
                show_progress_on=[source, shown],
                concurrency_limit=1,
                concurrency_id="hear",
                api_visibility="private",
            )
    blocks.queue(max_size=_QUEUE, api_open=False)
    return blocks


def _maker_page(maker: Maker, folder: str, bounds: Limits) -> Any:
    """Gradio's blocks of a run that makes something else: a widget for each thing that it asks for, a button, what is
    made."""
    import gradio

    answer = Making(maker, folder, bounds)
    with gradio.Blocks(title=maker.run.config.name, analytics_enabled=False, fill_width=True) as blocks:
        gradio.HTML(answer.opening(), apply_default_css=False)
        widgets: list[Any] = []
        with gradio.Row(equal_height=True):
            widget: Any
            for what, kind in maker.asked.items():
                if isinstance(kind, Label):
                    widget = gradio.Dropdown(list(kind.names), value=kind.names[0], label="Label", elem_id="label")
                elif what == "seed":
                    widget = gradio.Number(0, precision=0, minimum=0, label="Seed of the noise", elem_id="seed")
                else:
                    widget = gradio.File(label=f"Drop a {what}", elem_id=what, height=150, buttons=[])
                    widget.preprocess = _where  # type: ignore[assignment, method-assign]  # as for a clip
                widgets.append(widget)
        button = gradio.Button("Make", variant="primary", elem_id="make")
        shown = gradio.HTML("", elem_id="answer", apply_default_css=False)
        names = list(maker.asked)

        uploads = [widget for widget in widgets if isinstance(widget, gradio.File)]

        def asked(request: gradio.Request, *values: Any) -> Any:
            made = answer(dict(zip(names, values, strict=True)), limits.client_of(request))
            return [*(None for _ in uploads), made] if uploads else made  # files are gone, so the widgets show none

        button.click(
            asked,
            inputs=widgets,
            outputs=[*uploads, shown],
            show_progress_on=shown,
            concurrency_limit=1,
            concurrency_id="make",
            api_visibility="private",
        )
    blocks.queue(max_size=_QUEUE, api_open=False)
    return blocks


class Answering:
    """From an uploaded file and who sent it to the HTML that answers; the file is removed first."""

    def __init__(self, listener: Listener, folder: str, bounds: Limits) -> None:
        self._listener, self._folder, self._bounds = listener, folder, bounds
        self._rate = limits.Rate(bounds.per_minute)
        self._environment = environment()

    def __call__(self, path: str | None, client: str) -> str:
        content = None if path is None else take(path, self._folder)
        wait = self._rate.take(client)
        if wait:
            return self._refused(f"{self._bounds.per_minute} clips a minute are answered; wait {wait:.0f} s")
        if content is None:
            return self._refused("no clip arrived; record or drop one again")
        if len(content) > self._bounds.max_bytes:
            return self._refused(f"the file has {len(content) / 1e6:.3g} MB, at most {self._bounds.max_mb:g} are heard")
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
        return f"a recording of one voice, of {generate.SHORTEST_S:g} to {self._bounds.max_seconds:g} s"

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
            '<p class="small soft hint">{{ wanted }}, at most {{ mb }} MB, in any format. It is answered as soon as '
            "you stop, or drop it; then it is deleted.</p>"
        ).render(wanted=wanted, mb=f"{self._bounds.max_mb:g}")

    def closing(self) -> str:
        where = socket.gethostname()
        return self._render("closing.html.j2", version=__version__, where=where, disclaimer=generate.DISCLAIMER)

    def _refused(self, why: str) -> str:
        return self._render("refusal.html.j2", why=why)

    def _render(self, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(**values)


class Making:
    """From what a visitor gives and who it is to the HTML of what is made; files are removed first."""

    def __init__(self, maker: Maker, folder: str, bounds: Limits) -> None:
        self._maker, self._folder, self._bounds = maker, folder, bounds
        self._rate = limits.Rate(bounds.per_minute)

    def __call__(self, values: dict[str, Any], client: str) -> str:
        given = {what: value for what, value in values.items() if value is not None}
        files = {what: given.pop(what) for what in ("voice", "photo", "video") if what in given}
        lost = ""
        with contextlib.ExitStack() as removed:  # after all are read: two widgets may hold the same file
            for path in files.values():
                removed.callback(remove, path, self._folder)
            for what, path in files.items():
                try:
                    given[what] = Path(path).read_bytes()
                except OSError:
                    lost = what
        wait = self._rate.take(client)
        if wait:
            return self._refused(f"{self._bounds.per_minute} things a minute are made; wait {wait:.0f} s")
        if lost:
            return self._refused(f"the {lost} is gone, since a file that waits is soon removed; drop it again")
        for what in files:
            if len(given[what]) > self._bounds.max_bytes:
                megabytes = len(given[what]) / 1e6
                return self._refused(f"the {what} has {megabytes:.3g} MB, at most {self._bounds.max_mb:g} are read")
        try:
            things = self._maker.make(generate.Given(**given), self._bounds.max_seconds)
        except V2FError as error:
            return self._refused(str(error))
        notes = generate.provenance(self._maker.run, self._maker.system, step=self._maker.step)
        return self._render(
            "made_of.html.j2",
            things=things,
            run=self._maker.run.config.name,
            title=notes["Title"],
            disclaimer=notes["Disclaimer"],
        )

    def opening(self) -> str:
        maker = self._maker
        return self._render(
            "maker.html.j2",
            run=maker.run.config.name,
            step=maker.step,
            system=maker.run.config.system.name,
            stand_ins=list(maker.system.stand_ins),
            makes=list(maker.system.makes()),
            asked=generate.inputs_in_words(maker.system),
            title=generate.provenance(maker.run, maker.system, step=maker.step)["Title"],
        )

    def _refused(self, why: str) -> str:
        return self._render("refusal.html.j2", why=why, nothing="Nothing")

    def _render(self, template: str, **values: Any) -> str:
        return environment().get_template(template).render(**values)


def _where(upload: Any) -> str | None:
    return None if upload is None else upload.path


def take(path: str, folder: str) -> bytes:
    """The bytes of an upload in ``folder``, which is gone afterwards, and so is the folder that Gradio made for it."""
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


def _theme(gradio: Any) -> Any:
    """Gradio's components in the colours of every page of v2f, with fonts that are there already."""
    colours = {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "background_fill_primary": "var(--card)",
        "background_fill_secondary": "var(--paper)",
        "block_background_fill": "var(--card)",
        "block_border_color": "var(--rule)",
        "block_label_background_fill": "var(--card)",
        "block_label_text_color": "var(--ink)",
        "block_label_border_color": "var(--rule)",
        "border_color_primary": "var(--rule)",
        "border_color_accent": "var(--accent)",
        "color_accent": "var(--accent)",
        "color_accent_soft": "var(--pale)",
        "button_secondary_background_fill": "var(--card)",
        "button_secondary_background_fill_hover": "var(--pale)",
        "button_secondary_text_color": "var(--ink)",
        "button_secondary_border_color": "var(--rule)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_text_color": "var(--paper)",
        "input_background_fill": "var(--card)",
    }
    dark = {f"{name}_dark": value for name, value in colours.items() if not name.startswith("color_accent")}
    theme = gradio.themes.Base(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(**colours, **dark)


def _sweeping(folder: str) -> Callable[[Any], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(_sweep(folder))
        yield
        task.cancel()

    return lifespan


async def _sweep(folder: str) -> None:
    while True:
        await asyncio.sleep(_FORGOTTEN_S / 4)
        await asyncio.to_thread(limits.sweep, folder, _FORGOTTEN_S, time.time())


def _login() -> tuple[str, str] | None:
    """User and password of the page, out of the environment: a command line is read by others."""
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if bool(user) != bool(password):
        raise V2FError(f"{USER} and {PASSWORD}: only one of them is set; set both for a login, or none")
    return (user, password) if user and password else None


def _checked(login: tuple[str, str]) -> Callable[[str, str], bool]:
    def right(user: str, password: str) -> bool:
        same = [secrets.compare_digest(a.encode(), b.encode()) for a, b in zip((user, password), login, strict=True)]
        return all(same)

    return right


def _gradio(folder: str) -> Any:
    """Gradio, which asks its environment, when it is imported, how talkative it may be and where its files go."""
    os.environ |= _QUIETLY | {"GRADIO_TEMP_DIR": folder}
    try:
        import gradio
    except ImportError as error:
        raise V2FError("v2f serve: the page is made by Gradio; install it by pip install 'v2f[serve]'") from error
    return gradio


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM, which uvicorn raises once more when it is done, unwinds: the folder of uploads is removed."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise V2FError(
            f"{host}:{port}: cannot listen there ({error}); choose another with --host and --port"
        ) from error
    return listening
