"""The page: its components and their events. The only module that imports Gradio."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import gradio as gr  # pyright: ignore[reportMissingImports]  # an extra, which the type checker goes without

from foveate.errors import FoveateError
from foveate.play import html
from foveate.play.costs import Call, models
from foveate.play.figures import data_uri
from foveate.play.pictures import MOST_BYTES
from foveate.play.state import MOST_SPECS, link_of, state_of
from foveate.play.workbench import Session, Workbench, call_of

__all__ = ["built", "served"]

_FILES: Final = ["image", ".gif", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"]
_SLOTS: Final = range(MOST_SPECS)
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'self'"
)
"""What browsers may load: nothing from another machine."""
_VISITORS: Final = 200
"""Visitors whose sessions are kept; each holds its picture."""
_FORGET: Final = 600
"""Seconds after which files of visitors are removed."""
_ONE_BY_ONE: Final[Any] = {"concurrency_limit": 1, "concurrency_id": "sessions"}
"""Events run one after the other, so that each finds the session that the one before has left."""
_ADDRESS: Final = """(query) => {
  const own = [...new URLSearchParams(location.search)].filter(([name]) => name.startsWith("__"));
  const whole = new URLSearchParams([...own, ...new URLSearchParams(query)]).toString();
  history.replaceState(null, "", whole ? `?${whole}` : location.pathname);
  return `${location.origin}${location.pathname}${query ? "?" + query : ""}`;
}"""
_SAVE: Final = """(picture) => {
  if (!picture) return;
  const link = document.createElement("a");
  link.href = picture;
  link.download = "foveate.png";
  link.click();
}"""


class _Page:
    """The components, by name, and what each event does with them."""

    def __init__(self, workbench: Workbench) -> None:
        self.bench = workbench
        self.parts: dict[str, Any] = {}
        self.blocks = gr.Blocks(analytics_enabled=False, title="foveate", fill_width=True, delete_cache=(60, _FORGET))
        with self.blocks:
            self._lay_out()
            self._connect()

    # Components

    def _part(self, name: str, component: Any) -> Any:
        self.parts[name] = component
        return component

    def _html(self, name: str, **options: Any) -> Any:
        made = gr.HTML(elem_id=f"fv-{name}", js_on_load=html.script(), apply_default_css=False, **options)
        return self._part(name, made)

    def _lay_out(self) -> None:
        player = self.bench.players.pictures
        self.session = gr.State(None)
        self._html(
            "head",
            value=f'<div class="fv-head"><h1>foveate</h1><span class="fv-quiet">{player.title}, '
            f"{player.parameters / 1e6:,.1f} M parameters, {player.where}</span></div>",
        )
        self._html("notice", value="")
        with gr.Row(elem_id="fv-top"):
            with gr.Column(scale=1, min_width=280):
                self._html("picture")
                self._html("examples")
                self._part("another", gr.Button("Another like this", size="sm", elem_id="fv-another"))
                self._part(
                    "file",
                    gr.File(
                        label="Your own picture or clip",
                        file_types=_FILES,
                        height=100,
                        elem_id="fv-file",
                    ),
                )
            with gr.Column(scale=3, min_width=300):
                self._part(
                    "question",
                    gr.Textbox(label="Question", max_lines=3, elem_id="fv-question", submit_btn="Ask"),
                )
                self._html("questions")
                with gr.Row(elem_id="fv-specs", equal_height=False):
                    for slot in _SLOTS:
                        with gr.Column(min_width=180, elem_classes="fv-slot"):
                            label = f"Spec {html.LETTERS[slot]}"
                            self._part(
                                f"spec{slot}",
                                gr.Textbox(
                                    label=label, max_lines=2, elem_id=f"fv-spec{slot}", placeholder="such as cluster:64"
                                ),
                            )
                            self._html(f"controls{slot}")
        with gr.Tabs(elem_id="fv-tabs", overflow_behavior="wrap") as tabs:
            self._part("tabs", tabs)
            with self._tab("ask", "Ask"):
                self._html("answers")
                self._part("loyal", gr.Button("Ask all questions of this picture", size="sm", elem_id="fv-loyal"))
            with self._tab("see", "See"), gr.Row(elem_id="fv-looked-at"):
                with gr.Column(scale=2, min_width=300):
                    self._html("kept")
                with gr.Column(scale=1, min_width=260):
                    letters = [(f"Spec {letter}", number) for number, letter in enumerate(html.LETTERS)]
                    self._part("shown", gr.Radio(letters, label="What is shown", elem_id="fv-shown"))
                    self._part(
                        "saliency",
                        gr.Radio(
                            [
                                ("kept tokens", ""),
                                ("attention in the encoder", "encoder"),
                                ("attention in the decoder", "decoder"),
                            ],
                            label="As",
                            elem_id="fv-saliency",
                        ),
                    )
                    self._part(
                        "layer",
                        gr.Slider(0, 1, step=1, label="Layer", elem_id="fv-layer", buttons=[]),
                    )
                    self._html("layers")
                    self._part("download", gr.Button("Download the picture", size="sm", elem_id="fv-download"))
                    self._part("saved", gr.Textbox(visible=False))
            with self._tab("cost", "Cost"):
                self._lay_out_cost()
                self._html("cost")
            with self._tab("compare", "Compare"):
                self._lay_out_compare()
            with self._tab("share", "Share"):
                for name, label in (
                    ("link", "Link to this page"),
                    ("command", "As a command"),
                    ("python", "As Python"),
                ):
                    self._part(
                        name,
                        gr.Textbox(
                            label=label,
                            interactive=False,
                            buttons=["copy"],
                            elem_id=f"fv-{name}",
                            max_lines=24,
                            elem_classes="fv-code",
                        ),
                    )
        self._part("query", gr.Textbox(visible=False))

    def _tab(self, name: str, label: str) -> Any:
        return self._part(f"tab-{name}", gr.Tab(label, id=name, elem_id=f"fv-tab-{name}"))

    def _lay_out_cost(self) -> None:
        usual = Call()
        with gr.Row():
            self._part("model", gr.Dropdown(list(models()), value=usual.model, label="Model", elem_id="fv-model"))
            devices = self.bench.devices()
            self._part("device", gr.Dropdown(devices, value=usual.device, label="Device", elem_id="fv-device"))
        with gr.Row():
            for name, label, low, high, step in (
                ("width", "Image width", 56, 4096, 8),
                ("height", "Image height", 56, 4096, 8),
                ("text_tokens", "Text tokens", 1, 4096, 1),
                ("new_tokens", "New tokens", 1, 2048, 1),
                ("batch", "Batch", 1, 128, 1),
            ):
                made = gr.Slider(
                    low,
                    high,
                    value=getattr(usual, name),
                    step=step,
                    label=label,
                    elem_id=f"fv-{name}",
                    min_width=150,
                    buttons=[],
                )
                self._part(name, made)

    def _lay_out_compare(self) -> None:
        names = list(self.bench.results)
        first = names[-1] if names else None
        self._part(
            "results",
            gr.Dropdown(
                names, value=first, label="Results of foveate bench", elem_id="fv-results", visible=bool(names)
            ),
        )
        none = (
            "No results were named. Make some, then name them: <code>foveate bench --out results/mine</code>, "
            "<code>foveate play --results results</code>"
        )
        self._html("plot", value="" if names else f'<p class="fv-quiet">{none}</p>')
        self._html("failures", value="")

    # Events

    def _connect(self) -> None:
        parts, on = self.parts, self._on
        gr.on(
            [self.blocks.load],
            self._open,
            None,
            [self.session, *parts.values()],
            show_progress="hidden",
            api_visibility="private",
            **_ONE_BY_ONE,
        ).then(None, [parts["query"]], [parts["link"]], js=_ADDRESS, api_visibility="private")
        on(parts["examples"].select, self._choose)
        on(parts["another"].click, self._another)
        on(parts["file"].upload, self._receive, [parts["file"]])
        on(parts["questions"].select, self._choose_question)
        on(parts["question"].submit, self._ask, [parts["question"]])
        for slot in _SLOTS:
            on(parts[f"controls{slot}"].input, partial(self._control, slot))
            for event in (parts[f"spec{slot}"].submit, parts[f"spec{slot}"].blur):
                on(event, partial(self._write, slot), [parts[f"spec{slot}"]])
        on(parts["loyal"].click, self._ask_all, progress=True)
        for name in ("shown", "saliency", "layer"):
            on(parts[name].input, partial(self._look, name), [parts[name]])
        for name in ("model", "device", "width", "height", "text_tokens", "new_tokens", "batch"):
            on(parts[name].input, partial(self._calculate, name), [parts[name]])
        for name in ("ask", "see", "cost", "compare", "share"):
            on(parts[f"tab-{name}"].select, partial(self._turn_to, name), [parts["results"]])
        on(parts["results"].input, self._compare, [parts["results"]])
        on(parts["plot"].select, self._wrong, [parts["results"]])
        parts["download"].click(
            self._draw, [self.session], [parts["saved"], parts["notice"]], api_visibility="private"
        ).then(None, [parts["saved"]], None, js=_SAVE, api_visibility="private")

    def _on(self, event: Any, act: Callable[..., Any], inputs: Any = (), progress: bool = False) -> None:
        """Let an event change the session, and show what follows; of many events, the last one counts."""
        parts = self.parts
        event(
            self._acting(act, len(inputs)),
            [self.session, *inputs],
            [self.session, *parts.values()],
            trigger_mode="always_last",
            **_ONE_BY_ONE,
            show_progress="minimal" if progress else "hidden",
            api_visibility="private",
        ).then(None, [parts["query"]], [parts["link"]], js=_ADDRESS, api_visibility="private")

    def _acting(self, act: Callable[..., Any], values: int) -> Callable[..., Any]:
        """Return what an event runs: what `act` returns are the next session and values by the names of components."""

        def run(session: Session | None, *values: Any, event: gr.EventData) -> list[Any]:
            if session is None:
                # The page isn't open yet: it turns to its first tab by itself.
                return [gr.skip()] * (1 + len(self.parts))
            following: Session = session
            try:
                following, shown = act(session, *values, event=getattr(event, "_data", None) or {})
                shown = {"notice": "", **shown}
            except FoveateError as error:
                shown = {"notice": html.error_html(error)}
            shown["query"] = link_of(following.state)
            return [following, *(shown.get(name, gr.skip()) for name in self.parts)]

        # Gradio finds by annotations which argument is the event, and counts the others.
        return _taking(run, values)

    def _open(self, request: gr.Request) -> list[Any]:
        state = state_of(request.query_params.multi_items())
        session, said = self.bench.opened(state)
        shown = {**self._everything(session), "notice": html.error_html(said) if said else ""}
        shown |= {"tabs": gr.Tabs(selected=session.state.tab), "query": link_of(session.state)}
        call = session.state.call
        for name in ("model", "device", "width", "height", "text_tokens", "new_tokens", "batch"):
            shown[name] = getattr(call, name)
        if session.state.tab == "compare" and self.bench.results:
            shown["plot"], shown["failures"] = self.bench.compare(list(self.bench.results)[-1])
        return [session, *(shown.get(name, gr.skip()) for name in self.parts)]

    def _everything(self, session: Session) -> dict[str, Any]:
        """Return what depends on the picture, on the question and on the specs."""
        bench = self.bench
        found = {
            "picture": bench.picture(session),
            "examples": html.examples_html(session.state.source),
            "question": session.state.question,
            "questions": bench.questions(session),
        }
        for slot in _SLOTS:
            found[f"spec{slot}"] = session.state.specs[slot]
            controls = bench.controls(session, slot)
            if controls is not None:
                found[f"controls{slot}"] = controls
        return found | self._outcome(session)

    def _outcome(self, session: Session) -> dict[str, Any]:
        """Return what the open tab shows."""
        bench, tab = self.bench, session.state.tab
        if tab == "ask":
            return {"answers": bench.ask(session)}
        if tab == "see":
            kept, layers = bench.see(session)
            used = [(f"{html.LETTERS[n]}: {spec}", n) for n, spec in enumerate(session.state.specs) if spec.strip()]
            last = bench.layers(session) - 1
            of = session.state.saliency or "decoder"
            return {
                "kept": kept,
                "layers": layers,
                "shown": gr.Radio(used or [("dense", 0)], value=bench.shown(session)),
                "saliency": session.state.saliency,
                "layer": gr.Slider(0, max(1, last), value=bench.layer(session), label=f"Layer of the {of}"),
            }
        if tab == "cost":
            return {"cost": bench.cost(session)}
        if tab == "share":
            return {"command": bench.command(session), "python": bench.python(session)}
        return {}

    def _choose(self, session: Session, event: Any) -> tuple[Session, dict[str, Any]]:
        session = self.bench.with_source(session, str(event.get("pick", "")))
        return session, self._everything(session) | {"file": None}

    def _another(self, session: Session, event: Any) -> tuple[Session, dict[str, Any]]:
        session = self.bench.with_source(session, self.bench.another(session))
        return session, self._everything(session) | {"file": None}

    def _receive(self, session: Session, path: Any, event: Any) -> tuple[Session, dict[str, Any]]:
        session = self.bench.with_file(session, str(path))
        return session, self._everything(session)

    def _choose_question(self, session: Session, event: Any) -> tuple[Session, dict[str, Any]]:
        return self._ask(session, str(event.get("pick", "")), event)

    def _ask(self, session: Session, question: str, event: Any) -> tuple[Session, dict[str, Any]]:
        session = self.bench.with_question(session, question)
        shown = {"question": session.state.question, "questions": self.bench.questions(session)}
        return session, shown | self._outcome(session)

    def _ask_all(self, session: Session, event: Any) -> tuple[Session, dict[str, Any]]:
        session = self.bench.loyalty(session)
        return session, self._outcome(session)

    def _control(self, slot: int, session: Session, event: Any) -> tuple[Session, dict[str, Any]]:
        fields = dict(event.get("fields", {}))
        session = self.bench.with_controls(session, slot, fields)
        shown: dict[str, Any] = {f"spec{slot}": session.state.specs[slot]}
        # A slider must not be replaced while it is dragged.
        if fields.get("changed") != "tokens":
            controls = self.bench.controls(session, slot, bool(fields.get("open")))
            if controls is not None:
                shown[f"controls{slot}"] = controls
        return session, shown | self._outcome(session)

    def _write(self, slot: int, session: Session, text: str, event: Any) -> tuple[Session, dict[str, Any]]:
        if text.strip() == session.state.specs[slot]:
            return session, {}
        session = session.with_spec(slot, text[:2_000])
        controls = self.bench.controls(session, slot)
        shown = {} if controls is None else {f"controls{slot}": controls}
        return session, shown | self._outcome(session)

    def _look(self, name: str, session: Session, value: Any, event: Any) -> tuple[Session, dict[str, Any]]:
        values = {name: value if name == "saliency" else int(value)}
        if name == "saliency":
            values["layer"] = -1
        session = session.having(**values)
        shown = self._outcome(session)
        if name == "layer":
            # A slider must not be set while it is dragged.
            shown.pop("layer", None)
        return session, shown

    def _calculate(self, name: str, session: Session, value: Any, event: Any) -> tuple[Session, dict[str, Any]]:
        given = value if isinstance(value, str) else int(value)
        session = session.having(call=call_of(**{**vars(session.state.call), name: given}))
        return session, self._outcome(session)

    def _turn_to(self, tab: str, session: Session, results: Any, event: Any) -> tuple[Session, dict[str, Any]]:
        session = session.having(tab=tab)
        if tab == "compare" and results:
            return self._compare(session, results, event)
        return session, self._outcome(session)

    def _compare(self, session: Session, results: Any, event: Any) -> tuple[Session, dict[str, Any]]:
        plot, wrong = self.bench.compare(str(results))
        return session, {"plot": plot, "failures": wrong}

    def _wrong(self, session: Session, results: Any, event: Any) -> tuple[Session, dict[str, Any]]:
        plot, wrong = self.bench.compare(str(results), str(event.get("pick", "")))
        return session, {"plot": plot, "failures": wrong}

    def _draw(self, session: Session) -> tuple[str, str]:
        try:
            return data_uri(self.bench.download(session), lossless=True), ""
        except FoveateError as error:
            return "", html.error_html(error)


def _taking(run: Callable[..., list[Any]], values: int) -> Callable[..., list[Any]]:
    """Return `run` with as many arguments as there are inputs, and the event as an annotated one."""

    def without(session: Any, event: gr.EventData) -> list[Any]:
        return run(session, event=event)

    def with_one(session: Any, value: Any, event: gr.EventData) -> list[Any]:
        return run(session, value, event=event)

    return with_one if values else without


class _Headers:
    """Adds headers to every response that keep browsers on this machine.

    Args:
        app: the application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, sending)


def built(workbench: Workbench) -> Any:
    """Build the page, as Gradio's `Blocks`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return _Page(workbench).blocks


def served(workbench: Workbench, host: str = "127.0.0.1", port: int | None = None, *, wait: bool = True) -> Any:
    """Serve the page until the process ends.

    Args:
        workbench: answers.
        host: the address to listen on.
        port: None takes the first free one from 7860 on.
        wait: until Ctrl-C; otherwise the server goes on in a thread.

    Returns:
        Gradio's `Blocks`, whose `local_url` says where it is and whose `close()` ends it.
    """
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]

    page = built(workbench)
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=fonts,
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"],
        radius_size="md",
        spacing_size="sm",
    )
    page.queue(default_concurrency_limit=4, max_size=64)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=not wait,
        footer_links=[],
        max_file_size=MOST_BYTES,
        state_session_capacity=_VISITORS,
        app_kwargs={"middleware": [Middleware(_Headers)]},
        theme=theme,
        css=html.stylesheet(),
        head=html.head(),
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
    )
    return page
