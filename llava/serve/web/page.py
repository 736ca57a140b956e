"""The page as gradio Blocks: its controls, and which function each of them calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from llava.serve.web import looks
from llava.serve.web.asking import MAX_NEW_TOKENS, MAX_TEMPERATURE, NEW_TOKENS, TEMPERATURE, TOP_P
from llava.serve.web.dialog import DEFAULT_MODE, MODES, PageDialog
from llava.serve.web.events import PageEvents

if TYPE_CHECKING:
    from fastapi import FastAPI

# Uploads and what is shown of them are deleted this many seconds after they came; looked for as often as:
KEEP_UPLOADS_S = 24 * 3600
SWEEP_S = 600
MAX_UPLOAD_BYTES = 20 * 2**20
MAX_WAITING = 256  # events that wait for a place

# A reloaded page shows its own dialog; a new one shows the last of this browser.
_LOAD_JS = """(kept) => {
  window.llavaOpened = true;
  try { const own = sessionStorage.getItem("llava-chat"); if (own) return JSON.parse(own); } catch (error) {}
  return kept;
}"""
_KEEP_JS = """(kept) => {
  if (!window.llavaOpened) return;  // that is the last of this browser, not this page's own
  try { sessionStorage.setItem("llava-chat", JSON.stringify(kept)); } catch (error) {}
}"""
_SAVE_JS = """(content) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], {type: "application/json"}));
  link.download = "conversation.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


def build_blocks(
    events: PageEvents, *, embed_mode: bool = False, concurrency_count: int = 16, votes: bool = True
) -> gr.Blocks:
    """Return the page. embed_mode: without title and notes. votes: whether answers can be voted on."""
    with gr.Blocks(
        title="LLaVA", analytics_enabled=False, fill_height=True, delete_cache=(SWEEP_S, KEEP_UPLOADS_S)
    ) as blocks:
        _Page(blocks, events, embed_mode=embed_mode, concurrency_count=concurrency_count, votes=votes)
    blocks.queue(api_open=False, max_size=MAX_WAITING, default_concurrency_limit=concurrency_count)
    return blocks


class _Page:
    """The controls, made in the order in which they stand."""

    def __init__(
        self, blocks: gr.Blocks, events: PageEvents, *, embed_mode: bool, concurrency_count: int, votes: bool
    ) -> None:
        self.events, self.concurrency = events, concurrency_count
        self.kept = gr.BrowserState(PageDialog().to_json(), storage_key="llava-chat", secret="llava")
        with gr.Row(elem_id="page-head", equal_height=False):
            if not embed_mode:
                gr.Markdown(looks.title_markdown)
            self.model = gr.Dropdown(
                [], label="Model", interactive=True, elem_id="model", filterable=False, min_width=200
            )
        save = gr.Button("Save as JSON", size="sm", elem_id="save")
        self.window = self._chat_window(votes, save)
        self.box = gr.MultimodalTextbox(
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            placeholder="Ask about an image",
            label="Message",
            show_label=False,
            max_plain_text_length=50_000,
            elem_id="message",
            autofocus=True,
        )
        with gr.Accordion("Camera", open=False, elem_id="camera-panel"):
            camera = gr.Image(sources=["webcam"], type="filepath", label="Camera", height=260, buttons=[])
        self.controls = [self.model, *self._parameters()]
        if not embed_mode:
            gr.Markdown(
                looks.learn_more_markdown + (looks.tos_markdown if votes else ""), elem_id="page-note"
            )
        self._wire(blocks=blocks, camera=camera, save=save)

    def _chat_window(self, votes: bool, save: gr.Button) -> gr.Chatbot:
        examples = [
            {"text": question, "files": [str(path)], "icon": str(path)}
            for path, question in self.events.examples
        ]
        return gr.Chatbot(
            label="Conversation",
            show_label=False,
            elem_id="chatbot",
            height="calc(100dvh - 23rem)",
            buttons=["copy", "copy_all", save],
            editable="user",
            feedback_options=("Like", "Dislike", "Flag") if votes else (),
            placeholder=looks.placeholder,
            examples=examples,
            allow_file_downloads=False,
            allow_tags=False,
            sanitize_html=True,
            group_consecutive_messages=False,  # a group with an image could not be edited
            latex_delimiters=[
                {"left": "$$", "right": "$$", "display": True},
                {"left": "\\(", "right": "\\)", "display": False},
                {"left": "\\[", "right": "\\]", "display": True},
            ],
        )

    def _parameters(self) -> list[Any]:
        with gr.Accordion("Parameters", open=False, elem_id="parameters"):
            mode = gr.Radio(MODES, value=DEFAULT_MODE, label="Preprocess for non-square image")
            temperature = gr.Slider(0, MAX_TEMPERATURE, value=TEMPERATURE, step=0.1, label="Temperature")
            top_p = gr.Slider(0, 1, value=TOP_P, step=0.1, label="Top P")
            length = gr.Slider(0, MAX_NEW_TOKENS, value=NEW_TOKENS, step=64, label="Max output tokens")
        return [mode, temperature, top_p, length]

    def _wire(self, *, blocks: gr.Blocks, camera: gr.Image, save: gr.Button) -> None:
        events, box, window, kept = self.events, self.box, self.window, self.kept
        shown = [kept, window, box]
        self._answer(box.submit, events.add_text, [kept, box, *self.controls])
        self._answer(window.retry, events.regenerate, [kept, *self.controls])
        self._answer(window.edit, events.edit, [kept, *self.controls])
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        box.stop(events.stop, None, None, queue=False, **quick)
        window.undo(events.undo, kept, shown, queue=False, **quick)
        window.clear(events.clear_history, None, shown, queue=False, **quick)
        window.like(events.vote_last_response, kept, None, trigger_mode="multiple", **quick)
        window.example_select(events.take_example, None, box, queue=False, **quick)
        camera.input(events.take_photo, [box, camera], [box, camera], queue=False, **quick)
        written = gr.JSON(visible=False)
        save.click(events.share, kept, written, **quick).then(None, written, None, js=_SAVE_JS, **quick)
        kept.change(None, kept, None, js=_KEEP_JS, **quick)
        blocks.load(events.load_demo, kept, [kept, window, self.model], js=_LOAD_JS, **quick)

    def _answer(self, when: Callable[..., Any], function: Callable[..., Any], inputs: list[Any]) -> None:
        """Call a function that answers, at most `concurrency` of them at a time."""
        when(
            function,
            inputs,
            [self.kept, self.window, self.box],
            concurrency_limit=self.concurrency,
            concurrency_id="answers",
            show_progress="hidden",
            api_visibility="private",
        )


def mount(app: FastAPI, blocks: gr.Blocks, *, path: str = "/") -> None:
    """Put the page into an application; nothing of it reaches beyond this server."""
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        server_name="127.0.0.1",
        allowed_paths=[],
        max_file_size=MAX_UPLOAD_BYTES,
        show_error=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=looks.block_css,
        head=looks.head,
    )
