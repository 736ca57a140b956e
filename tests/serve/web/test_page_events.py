"""What the page's events do, without a browser: conversations, the log, errors, and the limits of uploads."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import os
import re
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from page_engine import DigitEngine, digit_image, write_digit
from PIL import Image
from warm.server import at_import

from llava.inference.engine import EngineDead, OutOfMemory, PromptTooLong, QueueFull
from llava.serve.web import events as page_events
from llava.serve.web.asking import Progress
from llava.serve.web.dialog import MAX_IMAGES, MAX_TURNS, Failure, PageDialog
from llava.serve.web.events import PageEvents, PageSettings, Settings
from llava.serve.web.images import ImageStore
from llava.serve.web.local import EngineBackend
from llava.serve.web.log import ConversationLog, get_conv_log_filename
from llava.serve.web.runs import Run

CONTROLS = ("llava-test", "Default", 0.2, 0.7, 64)


@pytest.fixture
def toasts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what the page would show for a moment."""
    found: list[str] = []
    for name in ("Warning", "Info"):
        monkeypatch.setattr(page_events.gr, name, lambda text, duration=None: found.append(text))
    return found


class Page:
    """A page without a browser: it keeps what its browser would."""

    def __init__(self, folder: Path, engine: Any, settings: PageSettings | None = None) -> None:
        from fake_engine import settings as of_server

        self.engine, self.folder = engine, folder
        self.store = ImageStore(folder / "images", folder / "previews")
        backend = EngineBackend(engine, of_server().model)
        self.events = PageEvents(backend, self.store, ConversationLog(folder / "log"), settings)
        self.kept: Any = PageDialog().to_json()
        self.window: list[dict[str, Any]] = []
        self.box: Any = None
        self.shown: list[str] = []

    def request(self, name: str = "a") -> Any:
        return SimpleNamespace(
            session_hash=name, client=SimpleNamespace(host="192.0.2.7"), query_params={"model": None}
        )

    def ask(self, text: str, *files: str, controls: tuple[Any, ...] = CONTROLS) -> None:
        box = {"text": text, "files": list(files)}
        self.run(self.events.add_text(self.kept, box, *controls, self.request()))

    def run(self, shown: AsyncGenerator[Any, None]) -> None:
        asyncio.run(self._follow(shown))

    async def _follow(self, shown: AsyncGenerator[Any, None]) -> None:
        async for kept, window, box in shown:
            self.take(kept, window, box)

    def take(self, kept: Any, window: Any, box: Any) -> None:
        if isinstance(kept, dict) and "turns" in kept:
            self.kept = json.loads(json.dumps(kept))
        if isinstance(window, list):
            self.window = window
            self.shown.append(str(window[-1]["content"]) if window else "")
        self.box = box

    @property
    def dialog(self) -> PageDialog:
        return PageDialog.of_json(self.kept)

    def lines(self) -> list[dict[str, Any]]:
        file = Path(get_conv_log_filename(self.folder / "log"))
        return [json.loads(one) for one in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def page(tmp_path: Path, toasts: list[str]) -> Page:
    return Page(tmp_path, DigitEngine())


# ---- asking ----


def test_an_answer_grows_to_its_last_word_and_is_kept(page: Page, tmp_path: Path) -> None:
    page.ask("Which one?", write_digit(tmp_path, 4))
    assert page.window[-1]["content"].strip() == "You asked: Which one? So the digits are 4."
    assert len(set(page.shown)) > 3 and page.shown[0] == "…"
    turn = page.dialog.turns[0]
    assert turn.answer and turn.answer.strip().endswith("are 4.") and len(turn.images) == 1
    assert page.dialog.model == "llava-test"


@pytest.mark.parametrize("pieces", [1, 2, 30])
def test_no_piece_of_an_answer_is_lost_however_fast_it_comes(page: Page, pieces: int) -> None:
    page.engine.words_for = lambda question, dialog: [f"{one} " for one in range(pieces)]
    page.ask("Fast")
    assert page.dialog.turns[0].answer == "".join(f"{one} " for one in range(pieces))


def test_a_piece_that_comes_while_the_page_is_told_is_not_the_one_that_is_lost() -> None:
    async def written() -> AsyncGenerator[Progress, None]:
        yield Progress("a")
        await asyncio.sleep(0.01)
        yield Progress("ab")

    async def read() -> list[str]:
        found = []
        async for one in Run().follow(written()):
            found.append(one.text)
            await asyncio.sleep(0.1)
        return found

    assert asyncio.run(read()) == ["a", "ab"]


def test_later_questions_bring_the_dialog_before_without_what_failed(page: Page, tmp_path: Path) -> None:
    page.ask("One", write_digit(tmp_path, 1))
    page.engine.refusal = QueueFull(9, 2.0)
    page.ask("Refused", write_digit(tmp_path, 2))
    page.engine.refusal = None
    page.ask("Three", write_digit(tmp_path, 3))
    assert "1 and 3." in str(page.window[-1]["content"])
    prompt = page.engine.asked[-1].prompt.conversation.get_prompt()
    assert "Refused" not in prompt and prompt.count("<image>") == 2


def test_the_modes_prepare_images_as_the_reference_does(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (2000, 500), "red").save(tmp_path / "wide.png")
    sizes = {}
    for mode in ("Default", "Crop", "Resize", "Pad"):
        page.ask("x", str(tmp_path / "wide.png"), controls=("llava-test", mode, 0.2, 0.7, 64))
        sizes[mode] = page.engine.asked[-1].prompt.images[-1].size
    assert sizes == {"Default": (1344, 336), "Crop": (1344, 336), "Resize": (336, 336), "Pad": (672, 672)}


@pytest.mark.parametrize(
    "given, expected",
    [
        ((0, 0.7, 512), (0.0, 0.7, 512)),
        ((99, -1, 10**9), (1.0, 0.0, 1024)),
        ((float("nan"), None, 0), (1.0, 1.0, 1)),
    ],
)
def test_settings_stay_in_their_ranges_whatever_is_sent(given: tuple, expected: tuple) -> None:
    read = Settings.of("m", "Nonsense", *given)
    assert (read.temperature, read.top_p, read.max_new_tokens) == expected and read.mode == "Default"


def test_nothing_is_asked_without_text_and_images(page: Page) -> None:
    page.ask("  ")
    assert not page.engine.asked and page.window == []


# ---- failures ----


@pytest.mark.parametrize(
    "error, code",
    [
        (QueueFull(64, 3.0), "queue_full"),
        (OutOfMemory("too little memory"), "out_of_memory"),
        (EngineDead("the engine was closed"), "engine_dead"),
        (PromptTooLong("the prompt takes 900 of 512 positions"), "context_length_exceeded"),
        (ValueError("secret detail"), "internal_error"),
    ],
)
def test_a_failure_is_told_in_words_with_code_and_request(page: Page, error: Exception, code: str) -> None:
    page.engine.refusal = error
    page.ask("Hi")
    told = page.window[-1]["content"]
    assert f"`{code}`" in told and re.search(r"`req_[0-9a-f]{32}`", told) and "secret" not in told
    failure = page.dialog.turns[0].failure
    assert failure and failure.code == code and failure.request_id in told
    page.engine.refusal = None
    page.ask("Again")
    assert "You asked: Again" in page.window[-1]["content"]


def test_what_there_is_of_an_answer_stays_when_it_breaks_off(page: Page) -> None:
    page.ask("please die here")
    turn = page.dialog.turns[0]
    assert turn.answer == "You asked: please " and turn.failure and turn.failure.code == "engine_dead"
    assert "The answer broke off" in page.window[-1]["content"]


def test_a_message_cannot_write_markdown() -> None:
    told = Failure("![x](http://evil) <b>*bold*</b>\n# head", "code", "req_1").markdown("```\nopen")
    assert "![x]" not in told and "<b>" not in told and "\n# head" not in told
    assert told.count("```") == 2  # a fence that the answer left open is closed


@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\nbroken", b"GIF89a"])
def test_what_is_no_image_is_named_and_not_sent(
    page: Page, toasts: list[str], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    page.ask("What?", write_digit(tmp_path, 1), str(tmp_path / "a.png"))
    assert not page.engine.asked and "a.png" in toasts[0] and str(tmp_path) not in toasts[0]


def test_too_many_too_large_and_vanished_files_are_refused(
    page: Page, toasts: list[str], tmp_path: Path
) -> None:
    page.ask("Many", *[write_digit(tmp_path, 1)] * (MAX_IMAGES + 1))
    page.ask("Gone", str(tmp_path / "gone.png"))
    (tmp_path / "big.png").write_bytes(b"\0" * (page.store.policy.max_bytes + 1))
    page.ask("Big", str(tmp_path / "big.png"))
    assert not page.engine.asked and len(toasts) == 3
    assert "at most 16" in toasts[0] and "upload it again" in toasts[1] and "at most 20" in toasts[2]


def test_moderation_refuses_a_question_and_an_edit(
    tmp_path: Path, toasts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(tmp_path, DigitEngine(), PageSettings(moderate=True))
    monkeypatch.setattr(page_events, "violates_moderation", lambda text: "bad" in text)
    page.ask("a bad text")
    assert not page.engine.asked and "content filter" in toasts[0]
    page.ask("a good text")
    edit = SimpleNamespace(index=0, value="a bad text")
    page.run(page.events.edit(page.kept, *CONTROLS, edit, page.request()))
    assert len(page.engine.asked) == 1 and page.dialog.turns[0].text == "a good text"


# ---- stop, retry, edit, undo, clear ----


def _while_it_counts(page: Page, meanwhile: Callable[[], None]) -> None:
    async def both() -> None:
        box = {"text": "please count", "files": []}
        begun = False
        async for one in page.events.add_text(page.kept, box, *CONTROLS, page.request()):
            page.take(*one)
            if not begun and "1 2" in page.shown[-1]:
                begun = True
                meanwhile()

    asyncio.run(both())
    page.engine.wait_until_idle()
    assert len(page.events.runs) == 0


def test_stop_keeps_what_there_is_and_logs_it(page: Page) -> None:
    _while_it_counts(page, lambda: page.events.stop(page.request()))
    assert page.dialog.turns[0].answer.startswith("0 1 2") and page.dialog.turns[0].failure is None
    assert page.lines()[0]["type"] == "chat" and page.lines()[0]["state"]["messages"][1][1].startswith(
        "0 1 2"
    )


def test_another_page_cannot_stop_it(page: Page) -> None:
    def others() -> None:
        page.events.stop(page.request("b"))
        asyncio.get_running_loop().call_later(0.3, page.events.stop, page.request())

    _while_it_counts(page, others)
    assert len(page.dialog.turns[0].answer.split()) > 4


def test_clear_while_it_writes_leaves_nothing(page: Page) -> None:
    _while_it_counts(page, lambda: page.take(*page.events.clear_history(page.request())))
    assert page.dialog == PageDialog() and page.window == []


def test_a_page_that_is_closed_ends_its_answer(page: Page) -> None:
    async def leave() -> None:
        shown = page.events.add_text(page.kept, {"text": "please count"}, *CONTROLS, page.request())
        async for _, window, _ in shown:
            if isinstance(window, list) and "1 2" in str(window[-1]["content"]):
                break
        await shown.aclose()

    asyncio.run(leave())
    page.engine.wait_until_idle()
    assert len(page.events.runs) == 0


def test_retry_edit_and_undo_go_back_to_their_question(page: Page, tmp_path: Path) -> None:
    page.ask("One", write_digit(tmp_path, 1))
    page.ask("Two")
    page.ask("Three")
    # messages: 0 image, 1 question, 2 answer; 3, 4; 5, 6
    page.run(page.events.edit(page.kept, *CONTROLS, SimpleNamespace(index=3, value="Second"), page.request()))
    assert [one.text for one in page.dialog.turns] == ["One", "Second"]
    page.run(page.events.regenerate(page.kept, *CONTROLS, SimpleNamespace(index=1), page.request()))
    assert [one.text for one in page.dialog.turns] == ["One"] and "are 1." in page.window[-1]["content"]
    page.take(*page.events.undo(page.kept, SimpleNamespace(index=0), page.request()))
    assert page.dialog.turns == () and page.window == []
    assert page.box.value["text"] == "One" and len(page.box.value["files"]) == 1


@pytest.mark.parametrize("index", [-1, 99, None, True, "0", [7, 0]])
def test_a_message_that_is_not_there_changes_nothing(page: Page, index: object) -> None:
    page.ask("One")
    before, n_asked = page.kept, len(page.engine.asked)
    for event in (page.events.regenerate, page.events.edit):
        page.run(event(page.kept, *CONTROLS, SimpleNamespace(index=index, value="x"), page.request()))
    page.take(*page.events.undo(page.kept, SimpleNamespace(index=index), page.request()))
    page.events.vote_last_response(page.kept, SimpleNamespace(index=index, liked=True), page.request())
    assert page.kept == before and len(page.engine.asked) == n_asked and len(page.lines()) == 1


# ---- the log ----


def test_the_log_has_the_references_lines(page: Page, tmp_path: Path) -> None:
    page.ask("Which one?", write_digit(tmp_path, 4))
    for liked in (True, False, "Flag"):
        page.events.vote_last_response(page.kept, SimpleNamespace(index=2, liked=liked), page.request())
    chat, *votes = page.lines()
    assert list(chat) == ["tstamp", "type", "model", "start", "finish", "state", "images", "ip"]
    assert chat["type"] == "chat" and chat["model"] == "llava-test" and chat["ip"] == "192.0.2.7"
    assert chat["start"] <= chat["finish"] == chat["tstamp"]
    assert chat["images"] == [hashlib.md5(digit_image(4).tobytes()).hexdigest()]
    assert list(chat["state"]) == ["system", "roles", "messages", "offset", "sep", "sep2"]
    answer = "You asked: Which one? So the digits are 4. "
    assert chat["state"]["messages"] == [["USER", "<image>\nWhich one?"], ["ASSISTANT", answer]]
    assert [one["type"] for one in votes] == ["upvote", "downvote", "flag"]
    assert all(list(one) == ["tstamp", "type", "model", "state", "ip"] for one in votes)
    assert votes[0]["state"] == chat["state"]
    name = Path(get_conv_log_filename(tmp_path)).name
    assert name == f"{datetime.datetime.now():%Y-%m-%d}-conv.json"


def test_a_double_event_of_one_click_is_one_vote_and_no_log_is_no_file(page: Page, tmp_path: Path) -> None:
    page.ask("Hi")
    for _ in range(2):
        page.events.vote_last_response(page.kept, SimpleNamespace(index=1, liked="Flag"), page.request())
    assert [one["type"] for one in page.lines()] == ["chat", "flag"]
    ConversationLog(None).vote("flag", "m", {}, ip="")
    (tmp_path / "file").write_text("")
    ConversationLog(tmp_path / "file").vote("flag", "m", {}, ip="")  # logged, and costs nobody an answer


# ---- what the browser keeps ----


_TURN = {"text": "a", "images": [], "mode": "Pad", "answer": None, "failure": None}


@pytest.mark.parametrize("image", ["/etc/passwd", "../x", "A" * 64, 7, None])
def test_only_the_digest_of_an_image_names_it(image: object) -> None:
    made_up = {"version": 1, "model": "", "turns": [{**_TURN, "images": [image]}]}
    assert PageDialog.of_json(made_up) == PageDialog()
    assert PageDialog.of_json({**made_up, "turns": [_TURN]}).turns[0].text == "a"


@pytest.mark.parametrize(
    "stored",
    [
        *(None, [], "x", {}, {"version": 2, "model": "", "turns": []}),
        {"version": 1, "model": 3, "turns": []},
        {"version": 1, "model": "", "turns": [None]},
        {"version": 1, "model": "", "turns": [_TURN] * (MAX_TURNS + 1)},
        {"version": 1, "model": "", "turns": [{**_TURN, "text": "x" * 200_001}]},
        {"version": 1, "model": "", "turns": [{**_TURN, "failure": ["a", "b"]}]},
    ],
)
def test_what_a_client_made_up_is_an_empty_dialog(stored: object) -> None:
    assert PageDialog.of_json(stored) == PageDialog()


def test_a_reload_shows_the_dialog_and_an_image_that_is_gone_is_told(page: Page, tmp_path: Path) -> None:
    page.ask("One", write_digit(tmp_path, 1))
    kept, window, models = asyncio.run(page.events.load_demo(page.kept, page.request()))
    assert kept == page.kept and window == page.window and models.value == "llava-test"
    page.store.file(page.dialog.turns[0].images[0]).unlink()
    _, window, _ = asyncio.run(page.events.load_demo(page.kept, page.request()))
    assert "not kept any more" in window[0]["content"]
    page.ask("And now?")
    assert "not kept any more" in page.window[-1]["content"]


def test_an_answer_that_a_reload_cut_off_is_told_and_can_be_asked_for_again(page: Page) -> None:
    page.ask("One")
    begun = page.dialog.ask("Two", (), "Pad").to_json()  # what a browser keeps before the answer is whole
    kept, window, _ = asyncio.run(page.events.load_demo(begun, page.request()))
    dialog = PageDialog.of_json(kept)
    assert dialog.turns[0] == page.dialog.turns[0] and dialog.turns[1].failure.code == "page_reloaded"
    assert window[-1]["role"] == "assistant" and "Retry asks again" in window[-1]["content"]
    assert dialog.turn_at(len(window) - 1) == 1 and "request" not in window[-1]["content"]


def test_the_saved_dialog_is_a_request_to_the_api(page: Page, tmp_path: Path) -> None:
    from asking import client_of
    from fake_engine import FakeEngine

    page.ask("One", write_digit(tmp_path, 1))
    page.ask("Two")
    saved = page.events.share(page.kept)
    engine = FakeEngine()
    again = {**saved, "messages": saved["messages"][:-1]}
    assert client_of(engine).post("/v1/chat/completions", json=again).status_code == 200
    assert engine.asked[0].prompt.images[0].tobytes() == digit_image(1).tobytes()


def test_images_are_dropped_when_old_or_too_many(tmp_path: Path) -> None:
    import os

    store = ImageStore(tmp_path / "a", tmp_path / "b", keep_s=100)
    old, new = store.add(digit_image(1)), store.add(digit_image(2))
    assert store.has(old) and store.open(new).tobytes() == digit_image(2).tobytes()
    os.utime(store.file(old), (1, 1))
    store.add(digit_image(3))
    assert not store.has(old) and store.has(new)
    small = ImageStore(tmp_path / "c", tmp_path / "d", keep_bytes=1)
    first, last = small.add(digit_image(1)), small.add(digit_image(2))
    assert small.has(last) and not small.has(first)


def test_examples_are_chosen_by_number_and_not_by_path(page: Page) -> None:
    forged = SimpleNamespace(index=0, value={"text": "x", "files": [{"path": "/etc/passwd"}]})
    assert "/etc/passwd" not in str(page.events.take_example(forged).value)
    for index in (-1, 3, "0", None, True):
        taken = page.events.take_example(SimpleNamespace(index=index, value=forged.value))
        assert "passwd" not in str(taken)


def test_a_page_that_all_tests_share_leaves_their_variables(
    make_site: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gradio turns the hub's telemetry off for the whole process; programs would no longer be forked."""
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    before = at_import(dict(os.environ))
    make_site()
    assert at_import(dict(os.environ)) == before
