"""The web page of a run or pipeline, ``v2f serve RUN``, built with Gradio: its server.

    browser --clip--> Gate --> Gradio --> a file in a private folder --read and removed--> Listener --> HTML

A clip is removed as soon as it has been read, whatever the reply is. The reply is HTML with its pictures inside, so
that nothing is left on disk. Nothing is sent to third parties: Gradio's telemetry is off, the fonts are those of the
visitor's system, and the headers forbid the page to load anything from elsewhere or to send anything there.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from v2f import __version__, generate
from v2f.errors import V2FError
from v2f.pipeline import Pipeline, opened
from v2f.runs.run import Run
from v2f.system import System
from v2f.web import blocks, limits
from v2f.web.answer import Listener
from v2f.web.maker import Maker
from v2f.web.page import environment

LOOPBACK = ("127.0.0.1", "localhost", "::1")
USER, PASSWORD = "V2F_SERVE_USER", "V2F_SERVE_PASSWORD"
_FORGOTTEN_S = 60.0  # age at which an upload without a call is removed
_USUAL = limits.Limits()
_QUIETLY = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_SHARE": "False",
}


def serve(
    run: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    which: str | int = "latest",
    bounds: limits.Limits = _USUAL,
    root_path: str = "",
) -> None:
    """Serve the page of ``run``, a run or a pipeline, until it is interrupted.

    ``host``: other than loopback, anyone who can reach it can use the page, unless V2F_SERVE_USER and
    V2F_SERVE_PASSWORD are set; browsers allow the microphone only over https and on loopback. ``port`` 0: any free
    port. ``which``: the checkpoint. ``root_path``: the path of the page behind a proxy, such as ``/voice``. V2FError
    without Gradio, for a run whose inputs or outputs no page supports, and if the port is taken.
    """
    login = _login()
    with (
        _listen(host, port) as listening,
        tempfile.TemporaryDirectory(prefix="v2f-serve-") as folder,
        _leaving_on_sigterm(),
    ):
        _gradio(folder)
        import uvicorn

        found = opened(run)
        print(f"loading {run} ...", flush=True)
        listener = _shown(found, which)
        if isinstance(listener, Listener) and listener.without:
            print(f"note: there is nothing to compare a voice with, so the page says less: {listener.without}")
        port = listening.getsockname()[1]
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}{root_path}  (stop with Ctrl-C)", flush=True)
        if host not in LOOPBACK:
            who = "anyone with the login" if login else "anyone who can reach it"
            print(
                f"note: {host} is reachable from other machines: {who} can use the page, unencrypted. Put it behind a "
                f"proxy with https, which the microphone needs, too; {USER} and {PASSWORD} set a login",
                flush=True,
            )
        config = uvicorn.Config(
            application(listener, folder, bounds, login, root_path),
            log_level="warning",
            access_log=False,  # nobody needs to know who spoke, and when
            server_header=False,
            limit_concurrency=256,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _shown(run: Run | Pipeline, which: str | int) -> "Listener | Maker":
    """What the page shows: a Listener if the run draws faces of voices, a Maker if it makes something else."""
    system = run.system(which=which)
    if isinstance(run, Run) and isinstance(system, System) and generate.is_face_of_voice(system):
        return Listener(run, which, system)
    return Maker(run, which, system)


def application(
    listener: Listener | Maker,
    folder: str,
    bounds: limits.Limits,
    login: tuple[str, str] | None = None,
    root_path: str = "",
) -> Any:
    """The ASGI application of a page. ``folder``: where uploads are until they are read; for this page alone."""
    gradio = _gradio(folder)
    import fastapi

    parent = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_sweeping(folder))

    @parent.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    # Again inside Gradio's container, where Gradio resets the style of headings and lists.
    look = environment().from_string(
        '<meta name="robots" content="noindex"><style>{% include "style.css.j2" %}'
        '.gradio-container { {% include "style.css.j2" %} } {% include "serve.css.j2" %}</style>'
    )
    if isinstance(listener, Listener):
        page = blocks.voice_page(listener, folder, bounds)
    else:
        page = blocks.maker_page(listener, folder, bounds)
    mounted = gradio.mount_gradio_app(
        parent,
        page,
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
        theme=blocks.theme(gradio),
        head=look.render(),
    )
    # A clip is an upload and a call. The limit of the replies is lower, and answers with a sentence.
    rate = limits.Rate(3 * bounds.per_minute)
    mounted.add_middleware(limits.Gate, folder=folder, max_bytes=bounds.max_bytes, rate=rate)
    if root_path:
        mounted.add_middleware(limits.RootPath, root=root_path)
    return mounted


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
    """User and password of the page, from the environment: other users can read a command line."""
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if bool(user) != bool(password):
        raise V2FError(f"{USER} and {PASSWORD}: only one of the two is set; set both for a login, or neither")
    return (user, password) if user and password else None


def _checked(login: tuple[str, str]) -> Callable[[str, str], bool]:
    def right(user: str, password: str) -> bool:
        same = [secrets.compare_digest(a.encode(), b.encode()) for a, b in zip((user, password), login, strict=True)]
        return all(same)

    return right


def _gradio(folder: str) -> Any:
    """Gradio; when it is imported, it reads from the environment whether to send telemetry and where to put files."""
    os.environ |= _QUIETLY | {"GRADIO_TEMP_DIR": folder}
    try:
        import gradio
    except ImportError as error:
        raise V2FError(
            "v2f serve: the page needs Gradio, which is not installed; run pip install 'v2f[serve]'"
        ) from error
    return gradio


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Exit on SIGTERM, which uvicorn raises again at its end, by an exception: so the folder of uploads is removed."""

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
            f"{host}:{port}: cannot listen on this address ({error}); choose another with --host and --port"
        ) from error
    return listening
