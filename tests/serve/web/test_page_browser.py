"""The page in a real browser: what a person does with it, on a wide screen and on a phone."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from page_engine import digit_image, write_digit
from page_site import PLACEHOLDER, SIZES, Site, answers, ask, go_to, questions, upload
from running import Mortal, running, wait_until

pytestmark = pytest.mark.slow
Open = Callable[..., Any]


@pytest.fixture
def expect() -> Any:
    made = pytest.importorskip("playwright.sync_api").expect
    made.set_options(timeout=20_000)
    return made


def ask_and_wait(page: Any, expect: Any, text: str) -> None:
    """Ask what the engine answers with the digits of the images, and wait for the whole answer."""
    ask(page, text)
    expect(answers(page).last).to_contain_text(f"You asked: {text} So")
    idle(page, expect)


def idle(page: Any, expect: Any) -> None:
    """Wait until the page takes a question again."""
    expect(page.get_by_label("Submit")).to_be_visible()


def fits(page: Any, size: str = "desktop") -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


@pytest.mark.parametrize("size", SIZES)
def test_a_digit_is_uploaded_and_its_answer_streams_in(
    size: str, open_page: Open, site: Site, expect: Any, tmp_path: Path, shots: Path
) -> None:
    page = open_page(size)
    page.wait_for_timeout(300)
    fits(page, size)
    page.screenshot(path=shots / f"{size}-empty.png")
    upload(page, write_digit(tmp_path, 8))
    site.engine.middle.clear()
    try:
        ask(page, "Which digit is this?")
        expect(answers(page).last).to_contain_text("White strokes on")
        assert "digit" not in answers(page).last.inner_text()
    finally:
        site.engine.middle.set()
    expect(answers(page).last).to_contain_text("White strokes on black: the digit is 8.")
    idle(page, expect)
    page.wait_for_timeout(200)
    page.screenshot(path=shots / f"{size}-digit.png")  # docs/images/web_page.png, web_page_phone.png
    ask(page, "Show me code")
    expect(answers(page).last).to_contain_text("Done.")
    assert page.locator("#chatbot pre code").count() == 1 and page.locator("#chatbot table").count() == 1
    idle(page, expect)
    fits(page, size)
    page.screenshot(path=shots / f"{size}-answer.png")


def test_the_dark_page(open_page: Open, expect: Any, shots: Path) -> None:
    page = open_page(color_scheme="dark")
    ask_and_wait(page, expect, "Is it dark?")
    page.screenshot(path=shots / "desktop-dark.png")
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert red + green + blue < 200


def test_stop_ends_the_answer_and_keeps_what_there_is(open_page: Open, site: Site, expect: Any) -> None:
    page = open_page()
    ask(page, "Please count")
    expect(answers(page).last).to_contain_text("1 2 3")
    page.locator("button.stop-button").click()
    idle(page, expect)
    site.engine.wait_until_idle()
    kept = answers(page).last.inner_text()
    page.wait_for_timeout(400)
    assert answers(page).last.inner_text() == kept and "3" in kept
    page.reload()
    expect(answers(page).last).to_contain_text("1 2 3")
    ask_and_wait(page, expect, "Go on?")


def test_retry_edit_and_undo(open_page: Open, site: Site, expect: Any, tmp_path: Path) -> None:
    page = open_page()
    upload(page, write_digit(tmp_path, 5))
    ask_and_wait(page, expect, "Which one?")
    n_asked = len(site.engine.asked)
    page.get_by_label("Retry").click()
    wait_until(lambda: len(site.engine.asked) == n_asked + 1)
    idle(page, expect)
    expect(answers(page)).to_have_count(1)
    expect(answers(page).last).to_contain_text("So the digits are 5.")
    page.get_by_label("Edit").last.click()
    page.locator("textarea.edit-textarea").fill("And now?")
    page.locator("#chatbot").get_by_label("Submit").click()
    expect(answers(page).last).to_contain_text("You asked: And now? So the digits are 5.")
    idle(page, expect)
    expect(questions(page).last).to_contain_text("And now?")
    ask_and_wait(page, expect, "A second one")
    expect(answers(page)).to_have_count(2)
    page.get_by_role("button", name="Undo").click()
    expect(answers(page)).to_have_count(1)
    expect(page.get_by_placeholder(PLACEHOLDER)).to_have_value("A second one")
    page.get_by_placeholder(PLACEHOLDER).fill("")
    page.get_by_role("button", name="Undo").click()
    expect(answers(page)).to_have_count(0)
    expect(page.locator(".thumbnail-item")).to_have_count(1)
    page.get_by_placeholder(PLACEHOLDER).press("Enter")
    expect(answers(page).last).to_contain_text("You asked: And now? So the digits are 5.")


def test_votes_and_flags_are_logged(open_page: Open, site: Site, expect: Any) -> None:
    page = open_page()
    ask_and_wait(page, expect, "Vote for this")
    before = len(site.lines())
    page.get_by_label("Like", exact=True).click()
    wait_until(lambda: len(site.lines()) == before + 1)
    page.get_by_label("Dislike", exact=True).click()
    wait_until(lambda: len(site.lines()) == before + 2)
    page.get_by_label("Feedback").click()
    page.get_by_text("Flag", exact=True).click()
    wait_until(lambda: len(site.lines()) == before + 3)
    found = site.lines()[before:]
    assert [one["type"] for one in found] == ["upvote", "downvote", "flag"]
    assert found[0]["state"]["messages"][0] == ["USER", "Vote for this"]
    assert found[0]["ip"] == "127.0.0.1"


def test_two_tabs_talk_at_once_and_each_is_kept_over_a_reload(
    open_page: Open, expect: Any, tmp_path: Path
) -> None:
    first = open_page()
    second = open_page(context=first.context)
    upload(first, write_digit(tmp_path, 1))
    upload(second, write_digit(tmp_path, 2))
    ask(first, "First tab")
    ask(second, "Second tab")
    for page, word, digit in ((first, "First", 1), (second, "Second", 2)):
        expect(answers(page).last).to_contain_text(f"You asked: {word} tab So the digits are {digit}.")
        idle(page, expect)
    for page, word in ((first, "First"), (second, "Second")):
        page.reload()
        expect(answers(page).last).to_contain_text(f"You asked: {word} tab")
        expect(page.locator("#chatbot .message img")).to_have_count(1)
        shown = (
            "Array.from(document.querySelectorAll('#chatbot .message img')).every((one) => one.naturalWidth)"
        )
        page.wait_for_function(shown)
    ask_and_wait(first, expect, "Still there?")
    expect(answers(first).last).to_contain_text("So the digits are 1.")


def test_a_second_image_and_two_at_once(open_page: Open, expect: Any, tmp_path: Path) -> None:
    page = open_page()
    upload(page, write_digit(tmp_path, 3))
    upload(page, write_digit(tmp_path, 4))
    ask_and_wait(page, expect, "Which ones?")
    expect(answers(page).last).to_contain_text("3 and 4.")
    upload(page, write_digit(tmp_path, 7))
    ask_and_wait(page, expect, "And this?")
    expect(answers(page).last).to_contain_text("3 and 4 and 7.")


# An image as a browser has it; what makes it is called with its base64 and its name.
AS_FILE = """const bytes = Uint8Array.from(atob(given[0]), (one) => one.charCodeAt(0));
  const file = new File([bytes], given[1], {type: "image/png"});"""


def as_given(digit: int) -> list[str]:
    buffer = io.BytesIO()
    digit_image(digit).save(buffer, "PNG")
    return [base64.b64encode(buffer.getvalue()).decode(), f"digit-{digit}.png"]


def paste(page: Any, digit: int) -> None:
    """Copy an image, as a program for screenshots does, and press Ctrl+V in the text box."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = (
        "async (given) => {"
        + AS_FILE
        + "await navigator.clipboard.write([new ClipboardItem({'image/png': file})]);}"
    )
    page.evaluate(copy, as_given(digit))
    page.get_by_placeholder(PLACEHOLDER).press("Control+V")


def drop(page: Any, digit: int) -> None:
    """Draw a file over the text box and let it go."""
    carried = page.evaluate_handle(
        "(given) => {" + AS_FILE + "const held = new DataTransfer(); held.items.add(file); return held;}",
        as_given(digit),
    )
    for event in ("dragenter", "dragover", "drop"):
        page.get_by_placeholder(PLACEHOLDER).dispatch_event(event, {"dataTransfer": carried})


def test_images_are_pasted_and_dropped(open_page: Open, expect: Any) -> None:
    page = open_page()
    for count, bring in enumerate((paste, drop), start=1):
        bring(page, 4 + count)
        expect(page.locator("#message .thumbnail-item")).to_have_count(count)
    ask_and_wait(page, expect, "Which ones?")
    expect(answers(page).last).to_contain_text("5 and 6.")


def test_a_wrong_file_is_told_and_nothing_is_asked(
    open_page: Open, site: Site, expect: Any, tmp_path: Path
) -> None:
    wrong = tmp_path / "notes.png"
    wrong.write_text("<script>alert(1)</script>")
    page = open_page()
    n_asked = len(site.engine.asked)
    upload(page, write_digit(tmp_path, 6))
    upload(page, str(wrong))
    ask(page, "What is it?")
    expect(page.get_by_test_id("toast-body")).to_contain_text("notes.png")
    expect(page.locator(".thumbnail-item")).to_have_count(1)
    expect(page.get_by_placeholder(PLACEHOLDER)).to_have_value("What is it?")
    assert len(site.engine.asked) == n_asked
    page.get_by_placeholder(PLACEHOLDER).press("Enter")
    expect(answers(page).last).to_contain_text("So the digits are 6.")


def test_an_engine_that_dies_mid_answer_is_told_with_the_requests_id(
    open_page: Open, expect: Any, shots: Path
) -> None:
    page = open_page()
    ask(page, "Please die slowly now")
    expect(answers(page).last).to_contain_text("the device was lost")
    told = page.locator("#chatbot").inner_text()
    assert "engine_dead" in told and re.search(r"req_[0-9a-f]{32}", told) and "You asked: Please" in told
    page.screenshot(path=shots / "desktop-error.png")
    idle(page, expect)
    ask_and_wait(page, expect, "Are you there?")


def test_what_a_model_says_is_text_and_loads_nothing_from_elsewhere(browser: Any, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(1)
        page = browser.new_context().new_page()  # whose browser complains of what it refuses
        go_to(page, site.url)
        image = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/x.png"
        script = "document.title='owned'"
        ask(page, f"<img src={image} onerror={script}><script>{script}</script> ![x]({image}) yes")
        page.get_by_text("yes").last.wait_for()
        assert page.title() == "LLaVA" and page.locator("#chatbot script").count() == 0
        with pytest.raises(TimeoutError):
            elsewhere.accept()
        page.context.close()


def test_clear_example_camera_and_the_dialog_as_a_file(
    open_page: Open, site: Site, expect: Any, tmp_path: Path
) -> None:
    page = open_page()
    page.get_by_text("Which digit is this?").click()
    expect(page.locator(".thumbnail-item")).to_have_count(1)
    page.get_by_placeholder(PLACEHOLDER).press("Enter")
    expect(answers(page).last).to_contain_text("the digit is ?.")
    idle(page, expect)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["model"] == "llava-test" and [one["role"] for one in saved["messages"]] == [
        "user",
        "assistant",
    ]
    assert saved["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    page.get_by_label("Clear").click()
    expect(answers(page)).to_have_count(0)
    page.get_by_role("button", name="Camera").click()
    page.get_by_title("grant webcam access").get_by_role("button").click()
    page.wait_for_function("document.querySelector('#camera-panel video')?.videoWidth > 0")
    page.get_by_label("capture photo").click()
    expect(page.locator("#message .thumbnail-item")).to_have_count(1)
    ask_and_wait(page, expect, "Who is that?")
    assert site.engine.asked[-1].prompt.images[0].width > 56


NAMELESS = """() => Array.from(document.querySelectorAll("button, input, textarea, select, [role=button]"))
  .filter((one) => one.offsetParent && one.type != "file" && !(one.getAttribute("aria-label") || one.title
    || one.innerText.trim() || one.getAttribute("aria-labelledby") || (one.labels && one.labels.length)
    || one.placeholder || one.querySelector("img[alt]:not([alt=''])")))
  .map((one) => one.outerHTML.slice(0, 300))"""


@pytest.mark.parametrize("size", SIZES)
def test_every_control_has_a_name(size: str, open_page: Open, expect: Any, tmp_path: Path) -> None:
    page = open_page(size)
    page.get_by_role("button", name="Parameters").click()
    page.get_by_label("Temperature").first.wait_for()
    upload(page, write_digit(tmp_path, 8))
    assert page.evaluate(NAMELESS) == []
    ask_and_wait(page, expect, "Which is it?")
    page.locator("#chatbot .message img").wait_for()
    assert page.evaluate(NAMELESS) == []
    tree = page.locator("body").aria_snapshot()
    assert not re.search(r"^\s*- (button|textbox|combobox|slider|radio|spinbutton)(:|$| \[)", tree, re.M), (
        tree
    )
    for name in ("Model", "Retry", "Undo", "Edit", "Like", "Dislike", "Feedback", "Clear", "Submit"):
        assert page.get_by_label(name).count() >= 1, name
    assert not page.get_by_label("Share", exact=True).is_visible()
    fits(page, size)


def test_a_closed_tab_ends_its_answer(open_page: Open, site: Site, expect: Any) -> None:
    page = open_page()
    ask(page, "Please count")
    expect(answers(page).last).to_contain_text("1 2 3")
    page.close()
    site.engine.wait_until_idle(20)


def test_the_key_opens_the_page(browser: Any, make_site: Open, open_page: Open, expect: Any) -> None:
    app, engine, _ = make_site(api_key="a-key-of-tests")
    with running(app) as url:
        refused = httpx2.get(url)
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
        credentials = {"username": "me", "password": "a-key-of-tests", "send": "always"}
        page = open_page(url=url, http_credentials=credentials)
        ask_and_wait(page, expect, "May I?")
        page.context.close()


# last: gradio has one folder of uploads in a process, and the second page's takes the place of the first's
def test_a_page_whose_server_is_killed_says_so_and_goes_on_when_it_is_back(
    browser: Any, make_site: Open, expect: Any
) -> None:
    """What was asked and answered stays; the answer that was being written is lost: Retry asks again."""
    app, _, _ = make_site()
    server = Mortal(app)
    context = browser.new_context()  # whose browser complains of broken connections
    try:
        page = context.new_page()
        go_to(page, server.url)
        ask_and_wait(page, expect, "Are you there?")
        ask(page, "Please count")
        expect(answers(page).last).to_contain_text("1 2 3")
        server.kill()
        expect(page.get_by_test_id("toast-body")).to_contain_text("Connection to the server was lost")
        expect(answers(page).last).to_contain_text("1 2 3")
        again, _, _ = make_site()  # a new process knows nothing of the old one's pages
        server = Mortal(again, server.port)
        expect(page.get_by_test_id("toast-body")).to_have_count(0)
        expect(answers(page).last).to_contain_text("Retry asks again")
        expect(questions(page)).to_have_count(2)
        expect(answers(page).first).to_contain_text("You asked: Are you there?")
        page.get_by_label("Retry", exact=True).click()
        expect(answers(page).last).to_contain_text("1 2 3")
    finally:
        context.close()
        server.kill()
