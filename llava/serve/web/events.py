"""What happens on a page: each function takes what the page holds and gives what it is to show."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from PIL import Image

from llava.images import ImageError
from llava.serve.errors import ServeError
from llava.serve.limits import request_id
from llava.serve.web.asking import MAX_NEW_TOKENS, MAX_TEMPERATURE, Backend, Question, Said
from llava.serve.web.dialog import DEFAULT_MODE, MAX_IMAGES, MODES, Failure, PageDialog, PageTurn
from llava.serve.web.images import ImageStore
from llava.serve.web.log import ConversationLog
from llava.serve.web.looks import draw_examples
from llava.serve.web.runs import Runs
from llava.utils import UserError, moderation_msg, text_fault, violates_moderation

logger = logging.getLogger(__name__)

MAX_TEXT = 50_000  # characters of a question; what a model's context holds is the model's to say
TOAST_S = 12
SAME_CLICK_S = 1.0
GONE = "*(this image is not kept any more)*"

Messages = list[dict[str, Any]]
Update = Any  # what gradio takes as the new state of a component
Shown = tuple[dict[str, Any], Messages, Update]  # what a browser keeps, the chat window, the text box


@dataclass(frozen=True)
class Settings:
    """What a user has set beside the question."""

    model: str
    mode: str
    temperature: float
    top_p: float
    max_new_tokens: int

    @classmethod
    def of(cls, model: object, mode: object, temperature: object, top_p: object, length: object) -> Settings:
        """Read the values of the page's controls, which a client may have made up."""
        return cls(
            model if isinstance(model, str) else "",
            mode if isinstance(mode, str) and mode in MODES else DEFAULT_MODE,
            _within(temperature, 0.0, MAX_TEMPERATURE),
            _within(top_p, 0.0, 1.0),
            max(1, int(_within(length, 0, MAX_NEW_TOKENS))),
        )


def _within(value: object, least: float, most: float) -> float:
    number = float(value) if isinstance(value, (int, float)) else most
    return min(max(number, least), most) if number == number else most  # NaN is not equal to itself


@dataclass(frozen=True)
class PageSettings:
    """How a page behaves. reload_models: ask for the list of models whenever a page is opened."""

    moderate: bool = False
    reload_models: bool = False


class PageEvents:
    """The events of all pages in front of one backend."""

    def __init__(
        self,
        backend: Backend,
        store: ImageStore,
        log: ConversationLog,
        settings: PageSettings | None = None,
    ) -> None:
        self.backend, self.store, self.log = backend, store, log
        self.settings = settings or PageSettings()
        self.runs = Runs()
        self.examples = draw_examples(store.previews / "examples")
        self._models: list[str] = []
        self._last_vote: tuple[object, float] = (None, 0.0)

    # ---- opening a page ----

    async def get_model_list(self) -> list[str]:
        """Return the names of the models, asked for again where that is set or none was found before."""
        if self.settings.reload_models or not self._models:
            try:
                self._models = await self.backend.models()
            except ServeError as error:
                logger.warning("no models: %s", error.message)
                gr.Warning(f"No model can be asked: {error.message}", duration=TOAST_S)
                return []
        return self._models

    async def load_demo(self, stored: object, request: gr.Request) -> tuple[dict[str, Any], Messages, Update]:
        """Show the dialog that the browser kept, and the models; `?model=` in the address chooses one."""
        dialog = PageDialog.of_json(stored).reopened()
        names = await self.get_model_list()
        wanted = [request.query_params.get("model"), dialog.model, *names]
        chosen = next((one for one in wanted if one in names), None)
        return dialog.to_json(), self.messages(dialog), gr.Dropdown(choices=names, value=chosen)

    # ---- asking ----

    async def add_text(
        self,
        stored: object,
        box: Mapping[str, Any] | None,
        model: object,
        mode: object,
        temperature: object,
        top_p: object,
        max_new_tokens: object,
        request: gr.Request,
    ) -> AsyncGenerator[Shown, None]:
        """Take what was written and uploaded as a question, and show its answer as it comes."""
        settings = Settings.of(model, mode, temperature, top_p, max_new_tokens)
        dialog = PageDialog.of_json(stored)
        text = str((box or {}).get("text") or "")
        files = [str(one) for one in (box or {}).get("files") or ()]
        if not text.strip() and not files:
            yield gr.skip(), gr.skip(), gr.skip()
            return
        images, kept, told = await asyncio.to_thread(self._keep, files)
        refusal = told or self._fault_of(text) or await self._moderated(text)
        if refusal:
            gr.Warning(refusal, duration=TOAST_S)
            yield gr.skip(), gr.skip(), gr.MultimodalTextbox(value={"text": text, "files": kept})
            return
        async with aclosing(self.http_bot(dialog.ask(text, images, settings.mode), settings, request)) as out:
            async for kept_state, messages, box_update in out:
                yield kept_state, messages, box_update

    def _keep(self, files: Sequence[str]) -> tuple[list[str], list[str], str]:
        """Keep uploaded images; return their ids, the files that are images, what to tell of the others."""
        ids, good, faults = [], [], []
        for path in files[:MAX_IMAGES]:
            try:
                ids.append(self.store.add_file(path, path.replace("\\", "/").rpartition("/")[2]))
                good.append(path)
            except ImageError as error:
                faults.append(str(error))
        if len(files) > MAX_IMAGES:
            faults.append(f"{len(files)} images were given; at most {MAX_IMAGES} go with one question")
        return ids, good, " ".join(f"{one[0].upper()}{one[1:]}." for one in faults)

    def _fault_of(self, text: str) -> str:
        if len(text) > MAX_TEXT:
            return f"The text has {len(text):,} characters; at most {MAX_TEXT:,} are sent."
        fault = text_fault(text)
        return f"The text {fault}." if fault else ""

    async def _moderated(self, text: str) -> str:
        """Return what to say of a text that the moderation service refuses, if that is asked."""
        if self.settings.moderate and text.strip() and await asyncio.to_thread(violates_moderation, text):
            return moderation_msg
        return ""

    async def http_bot(
        self, dialog: PageDialog, settings: Settings, request: gr.Request
    ) -> AsyncGenerator[Shown, None]:
        """Answer the last question of a dialog: what the browser keeps and the window shows, as it grows."""
        page = request.session_hash or ""
        run = await self.runs.begin(page)
        number = f"req_{uuid.uuid4().hex}"
        request_id.set(number)
        dialog = replace(dialog, model=settings.model)
        text, failure, began = "", None, time.time()
        try:
            yield dialog.to_json(), self.messages(dialog.with_answer("…")), _busy(clear=True)
            question = await asyncio.to_thread(self._question, dialog, settings)
            answer = run.follow(self.backend.answer(question))
            async with aclosing(answer):
                async for one in answer:
                    text = one.text
                    waits = "" if text or not one.place else f"*Waiting: place {one.place} in the queue*"
                    yield gr.skip(), self.messages(dialog.with_answer(waits or text or "…")), gr.skip()
            self._note(question, text, began, request)
        except (ServeError, UserError) as error:
            code = error.code if isinstance(error, ServeError) else "invalid_value"
            logger.warning("no answer (%s): %s", code, error)
            failure = Failure(str(error), code, number)
        except Exception:
            logger.exception("an answer failed")
            failure = Failure("the page failed; its log says why, under the request's id", "error", number)
        finally:
            self.runs.end(page, run)
        if run.discarded:
            yield gr.skip(), gr.skip(), gr.skip()
            return
        dialog = dialog.with_answer(text, failure)
        yield dialog.to_json(), self.messages(dialog), _idle()

    def _question(self, dialog: PageDialog, settings: Settings) -> Question:
        """Open and prepare the images of a dialog. Raises ImageError, ServeError."""
        if not settings.model:
            raise ServeError(503, "no model is chosen, or none is served", code="no_model")
        turns = [
            Said(one.text, [self._prepared(image, one.mode, settings) for image in one.images], one.answer)
            for one in dialog.prompt_turns()
        ]
        return Question(settings.model, turns, settings.temperature, settings.top_p, settings.max_new_tokens)

    def _prepared(self, image: str, mode: str, settings: Settings) -> Image.Image:
        template = self.backend.template_of(settings.model)
        prepared = template.process_image(self.store.open(image), mode, return_pil=True)
        assert isinstance(prepared, Image.Image)
        return prepared

    def _note(self, question: Question, text: str, began: float, request: gr.Request) -> None:
        """Write an answer to the log, also one that was stopped."""
        state = self._state(question.turns, question.model, text)
        self.log.chat(
            question.model, state, question.images, start=began, finish=time.time(), ip=_address(request)
        )

    def _state(self, turns: Sequence[Said], model: str, answer: str | None) -> dict[str, Any]:
        """Return a dialog as the reference logs it."""
        last = replace(turns[-1], answer=answer)
        conversation = Question(model, [*turns[:-1], last]).conversation(self.backend.template_of(model))
        return conversation.dict()

    # ---- what was asked before ----

    async def regenerate(
        self,
        stored: object,
        model: object,
        mode: object,
        temperature: object,
        top_p: object,
        max_new_tokens: object,
        event: gr.RetryData,
        request: gr.Request,
    ) -> AsyncGenerator[Shown, None]:
        """Ask a question again; what came after it goes."""
        settings = Settings.of(model, mode, temperature, top_p, max_new_tokens)
        dialog = PageDialog.of_json(stored)
        index = dialog.turn_at(event.index)
        if index is None:
            yield gr.skip(), gr.skip(), gr.skip()
            return
        async with aclosing(self.http_bot(dialog.ask_again(index), settings, request)) as out:
            async for one in out:
                yield one

    async def edit(
        self,
        stored: object,
        model: object,
        mode: object,
        temperature: object,
        top_p: object,
        max_new_tokens: object,
        event: gr.EditData,
        request: gr.Request,
    ) -> AsyncGenerator[Shown, None]:
        """Ask a question with another text; what came after it goes."""
        settings = Settings.of(model, mode, temperature, top_p, max_new_tokens)
        dialog = PageDialog.of_json(stored)
        index, text = dialog.turn_at(event.index), str(event.value)
        refusal = "" if index is None else self._fault_of(text) or await self._moderated(text)
        if index is None or refusal:
            gr.Warning(refusal or "That question is not part of the conversation.", duration=TOAST_S)
            yield gr.skip(), self.messages(dialog), gr.skip()
            return
        async with aclosing(self.http_bot(dialog.ask_again(index, text), settings, request)) as out:
            async for one in out:
                yield one

    def undo(self, stored: object, event: gr.UndoData, request: gr.Request) -> Shown:
        """Take a question back into the text box, with its images; what came after it goes."""
        dialog = PageDialog.of_json(stored)
        index = dialog.turn_at(event.index)
        if index is None:
            return gr.skip(), gr.skip(), gr.skip()
        self.runs.stop(request.session_hash or "", discard=True)
        taken, dialog = dialog.turns[index], dialog.until(index)
        files = [str(self.store.file(one)) for one in taken.images if self.store.has(one)]
        box = gr.MultimodalTextbox(
            value={"text": taken.text, "files": files}, submit_btn=True, stop_btn=False
        )
        return dialog.to_json(), self.messages(dialog), box

    def clear_history(self, request: gr.Request) -> Shown:
        """Begin a new dialog."""
        self.runs.stop(request.session_hash or "", discard=True)
        return PageDialog().to_json(), [], _idle()

    def stop(self, request: gr.Request) -> None:
        """End the answer that is being written; what there is of it stays."""
        self.runs.stop(request.session_hash or "")

    def take_example(self, event: gr.SelectData) -> Update:
        """Put an example into the text box; which one, not what, is taken from the request."""
        if isinstance(event.index, bool) or event.index not in range(len(self.examples)):
            return gr.skip()
        path, question = self.examples[event.index]
        return gr.MultimodalTextbox(value={"text": question, "files": [str(path)]})

    def take_photo(self, box: Mapping[str, Any] | None, photo: str | None) -> tuple[Update, Update]:
        """Put a photo of the camera beside what is in the text box."""
        if photo is None:
            return gr.skip(), gr.skip()
        text, files = (box or {}).get("text") or "", (box or {}).get("files") or ()
        return gr.MultimodalTextbox(value={"text": text, "files": [*files, photo]}), gr.Image(value=None)

    # ---- votes, and the dialog as a file ----

    def vote_last_response(self, stored: object, event: gr.LikeData, request: gr.Request) -> None:
        """Note a vote on an answer, with the dialog up to it."""
        dialog = PageDialog.of_json(stored)
        index = dialog.turn_at(event.index)
        kind = {True: "upvote", False: "downvote", "Flag": "flag"}.get(event.liked)
        if index is None or kind is None or not dialog.turns[index].answer:
            return
        vote = (request.session_hash, index, kind)
        again, self._last_vote = self._last_vote, (vote, time.monotonic())
        if again[0] == vote and time.monotonic() - again[1] < SAME_CLICK_S:  # gradio tells of a flag twice
            return
        turns = [_said(one) for one in dialog.until(index + 1).prompt_turns()]
        state = self._state(turns, dialog.model, dialog.turns[index].answer)
        self.log.vote(kind, dialog.model, state, ip=_address(request))
        gr.Info("Thank you: your vote was noted.", duration=4)

    def share(self, stored: object) -> dict[str, Any]:
        """Return the dialog in the form of OpenAI's messages, images included."""
        dialog = PageDialog.of_json(stored)
        messages: list[dict[str, Any]] = []
        for turn in dialog.turns:
            urls = [self.store.data_url(one) for one in turn.images if self.store.has(one)]
            parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": one}} for one in urls]
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.text}]})
            if turn.answer:
                messages.append({"role": "assistant", "content": turn.answer})
        return {"model": dialog.model, "messages": messages}

    # ---- what is shown ----

    def messages(self, dialog: PageDialog) -> Messages:
        """Return what the chat window shows of a dialog."""
        found: Messages = []
        for line in dialog.lines():
            content: object = line.content
            if line.kind == "image":
                path = str(self.store.preview(line.content))
                content = {"path": path, "alt_text": "image"} if self.store.has(line.content) else GONE
            role = "user" if line.kind in ("image", "question") else "assistant"
            found.append({"role": role, "content": content})
        return found


def _said(turn: PageTurn) -> Said:
    """Return a turn for a log, which needs no images but their number."""
    return Said(turn.text, [Image.new("RGB", (1, 1))] * len(turn.images), turn.answer)


def _address(request: gr.Request) -> str:
    client = request.client
    return client.host if client is not None else ""


def _busy(*, clear: bool = False) -> Update:
    cleared = {"value": None} if clear else {}
    return gr.MultimodalTextbox(submit_btn=False, stop_btn=True, **cleared)


def _idle() -> Update:
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
