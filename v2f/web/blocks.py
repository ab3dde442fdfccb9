"""The served page as Gradio's blocks: widgets, what they send, where the reply is shown; and its theme."""

from typing import Any

from v2f.system import Kind, Label
from v2f.web import limits
from v2f.web.answer import Listener
from v2f.web.maker import Maker
from v2f.web.replies import ClipReplies, MakerReplies

_QUEUE = 16  # clips that may wait while one is answered


def voice_page(listener: Listener, folder: str, bounds: limits.Limits) -> Any:
    """The page of a run that draws a face of a voice: header, recorder, answer, footer."""
    import gradio

    replies = ClipReplies(listener, folder, bounds)

    def asked(path: str | None, request: gradio.Request) -> tuple[None, str]:
        return None, replies(path, limits.client_of(request))

    title = f"A face for a voice · {listener.run.config.name}"
    with gradio.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gradio.HTML(replies.opening(), apply_default_css=False)
        with gradio.Row(equal_height=True):
            microphone = gradio.Audio(
                sources=["microphone"], type="filepath", label="Speak", editable=False, buttons=[], elem_id="microphone"
            )
            # Any file, not only what Gradio takes for audio: a video has sound, too, and the reply says what is wrong.
            clip = gradio.File(label="Or drop a recording", elem_id="clip", height=150, buttons=[])
            clip.preprocess = _path_of  # type: ignore[assignment, method-assign]  # Gradio's own leaves an empty file behind
        gradio.HTML(replies.hint(), apply_default_css=False)
        shown = gradio.HTML("", elem_id="answer", apply_default_css=False)
        gradio.HTML(replies.closing(), apply_default_css=False)
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


def maker_page(maker: Maker, folder: str, bounds: limits.Limits) -> Any:
    """The page of any other run, or of a pipeline: a widget for each thing that it takes, a button, and what it makes.

    Things of which one is enough have a tab and a button each; the other widgets are below and go with every button.
    """
    import gradio

    replies = MakerReplies(maker, folder, bounds)
    with gradio.Blocks(title=maker.run.name, analytics_enabled=False, fill_width=True) as blocks:
        gradio.HTML(replies.opening(), apply_default_css=False)
        sets: list[tuple[dict[str, Any], Any]] = []  # the widgets of a button, by what they take, and the button
        if maker.instead:
            with gradio.Tabs():
                for what, kind in maker.instead.items():
                    with gradio.Tab(what.capitalize()):
                        sets.append(({what: _widget(what, kind)}, _button(f"make-{what}")))
        with gradio.Row(equal_height=True):
            asked = {what: kind for what, kind in maker.asked.items() if what not in maker.instead}
            needed = {what: _widget(what, kind) for what, kind in asked.items()}
        sets = [({**own, **needed}, button) for own, button in sets] or [(needed, _button("make"))]
        shown = gradio.HTML("", elem_id="answer", apply_default_css=False)
        for widgets, button in sets:
            _answering(replies, widgets, button, shown)
    blocks.queue(max_size=_QUEUE, api_open=False)
    return blocks


def _widget(what: str, kind: Kind) -> Any:
    """The widget for an input: a field of :class:`v2f.given.Given`."""
    import gradio

    if isinstance(kind, Label):
        return gradio.Dropdown(list(kind.names), value=kind.names[0], label="Label", elem_id="label")
    if what == "seed":
        return gradio.Number(0, precision=0, minimum=0, label="Seed of the noise", elem_id="seed")
    widget = gradio.File(label=f"Drop a {what}", elem_id=what, height=150, buttons=[])
    widget.preprocess = _path_of  # type: ignore[assignment, method-assign]  # as for a clip
    return widget


def _button(name: str) -> Any:
    import gradio

    return gradio.Button("Make", variant="primary", elem_id=name)


def _answering(replies: MakerReplies, widgets: dict[str, Any], button: Any, shown: Any) -> None:
    """Let ``button`` show the reply to what is in ``widgets``."""
    import gradio

    names = list(widgets)
    uploads = [widget for widget in widgets.values() if isinstance(widget, gradio.File)]

    def asked(request: gradio.Request, *values: Any) -> Any:
        made = replies(dict(zip(names, values, strict=True)), limits.client_of(request))
        return [*(None for _ in uploads), made] if uploads else made  # the files are gone: clear the widgets

    button.click(
        asked,
        inputs=list(widgets.values()),
        outputs=[*uploads, shown],
        show_progress_on=shown,
        concurrency_limit=1,
        concurrency_id="make",
        api_visibility="private",
    )


def _path_of(upload: Any) -> str | None:
    return None if upload is None else upload.path


def theme(gradio: Any) -> Any:
    """A theme with the colors of v2f's pages and the fonts of the visitor's system."""
    colors = {
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
    dark = {f"{name}_dark": value for name, value in colors.items() if not name.startswith("color_accent")}
    base = gradio.themes.Base(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return base.set(**colors, **dark)
