"""One server and one browser for all tests of the page; what a test writes down is judged when it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import open_browser
from fake_engine import settings
from page_engine import DigitEngine
from page_site import SIZES, Site, go_to
from running import running
from warming import same_variables

from llava.serve.guard import PageGuard
from llava.serve.openai.app import create_app
from llava.serve.web.flags import PageFlags
from llava.serve.web.launch import add_page
from llava.serve.web.local import EngineBackend

FLAGS = [
    *("--disable-quic", "--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
]
WAIT_MS = 30_000


@pytest.fixture(scope="session")
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Give a function that returns an application with a page, its engine and the folder of its log."""

    def make(**changes: Any) -> tuple[Any, DigitEngine, Path]:
        engine, log = DigitEngine(), tmp_path_factory.mktemp("log")
        app = create_app(engine, settings(page=PageGuard(), **changes))
        flags = PageFlags(8, False, False, False, str(log))
        with same_variables():  # the page outlives the test that is the first to ask for it
            add_page(app, EngineBackend(engine, settings().model), flags, "(of a test)")
        return app, engine, log

    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    yield make
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def site(make_site: Callable[..., Any]) -> Iterator[Site]:
    app, engine, log = make_site()
    with running(app) as url:
        yield Site(url, engine, log)


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of screenshots: that of PAGE_SHOTS, for whoever keeps them, or a temporary one."""
    named = os.environ.get("PAGE_SHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")  # its event loop would stay in the thread of later tests
def browser() -> Iterator[Any]:
    yield from open_browser(*FLAGS)


@pytest.fixture
def open_page(browser: Any, site: Site) -> Iterator[Callable[..., Any]]:
    """Give a function that opens the page; at the end none of them may have failed or left the server."""
    contexts: list[Any] = []
    faults: list[str] = []

    def open_one(
        size: str = "desktop", *, url: str = site.url, context: Any = None, path: str = "", **options: Any
    ) -> Any:
        if context is None:
            width, height = SIZES[size]
            small = size == "phone"
            viewport = {"width": width, "height": height}
            context = browser.new_context(viewport=viewport, is_mobile=small, has_touch=small, **options)
            context.set_default_timeout(WAIT_MS)
            contexts.append(context)
        page = context.new_page()
        own = (url, "data:", "blob:")
        page.on("request", lambda one: None if one.url.startswith(own) else faults.append(one.url))
        page.on("response", lambda one: faults.append(f"{one.status} {one.url}") if one.status >= 400 else 0)
        page.on("console", lambda one: faults.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda one: faults.append(str(one)))
        go_to(page, url + path)
        return page

    yield open_one
    for one in contexts:
        one.close()
    assert not faults
