"""From the flags of the programs to a page that runs, in front of a controller or of an engine beside it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from gradio.networking import setup_tunnel

from llava.serve.errors import ServeError
from llava.serve.guard import PageGuard, error_handlers, guard
from llava.serve.limits import Limits
from llava.serve.logs import set_up_logging
from llava.serve.sockets import bind, url_of
from llava.serve.web.asking import Backend
from llava.serve.web.events import PageEvents, PageSettings
from llava.serve.web.flags import PageFlags
from llava.serve.web.images import ImageStore
from llava.serve.web.log import ConversationLog
from llava.serve.web.page import build_blocks, mount
from llava.serve.web.remote import ControllerBackend
from llava.serve.web_server import make_server

logger = logging.getLogger(__name__)

DRAIN_S = 30


def make_page(backend: Backend, flags: PageFlags, folder: Path) -> gr.Blocks:
    """Return the page of a backend; what is uploaded lies in `folder`, which is its own alone."""
    # gradio reads these while it makes components and answers uploads
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    store = ImageStore(folder / "images", folder / "uploads" / "previews")
    settings = PageSettings(flags.moderate, flags.reload_models)
    events = PageEvents(backend, store, ConversationLog(flags.log_dir), settings)
    return build_blocks(
        events,
        embed_mode=flags.embed,
        concurrency_count=flags.concurrency_count,
        votes=flags.log_dir is not None,
    )


def add_page(app: FastAPI, backend: Backend, flags: PageFlags, url: str) -> None:
    """Put a page at the root of an application; its uploads are deleted when the server ends."""
    folder = Path(tempfile.mkdtemp(prefix="llava-page-"))

    @app.api_route("/v1/{path:path}", methods=["GET", "POST"], include_in_schema=False)
    async def nothing(path: str) -> JSONResponse:
        told = ServeError(404, "there is no such path", code="not_found")
        return JSONResponse(told.body, 404, told.headers)

    mount(app, make_page(backend, flags, folder))
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            sys.stdout.write(f"The page is at {url}\n")
            sys.stdout.flush()
            tunnel = asyncio.ensure_future(_share(url)) if flags.share else None
            yield
            if tunnel is not None:
                tunnel.cancel()
        shutil.rmtree(folder, ignore_errors=True)

    app.router.lifespan_context = lifespan


async def _share(url: str) -> None:
    """Open gradio's tunnel to this server and say where it begins."""
    host, _, port = url.rpartition("//")[2].rpartition(":")
    try:
        public = await asyncio.to_thread(setup_tunnel, host, int(port), os.urandom(16).hex(), None, None)
    except Exception as error:  # of gradio, the network, or the program that it fetches
        logger.error("--share: the tunnel cannot be opened: %s", error)
        return
    sys.stdout.write(f"The page is on the internet at {public}\n")
    sys.stdout.flush()


def serve_page(args: argparse.Namespace, flags: PageFlags, limits: Limits) -> None:
    """Serve a page in front of a controller until the process is stopped. Raises UserError."""
    set_up_logging("info", secrets=(args.api_key,))
    with bind(args.host, args.port) as listening:
        app = page_app(ControllerBackend(args.controller_url, api_key=args.api_key), flags, url_of(listening))
        guarded = guard(app, api_key=args.api_key, limits=limits, page=PageGuard(flags.embed))
        make_server(guarded, drain_seconds=DRAIN_S).run(sockets=[listening])


def page_app(backend: Backend, flags: PageFlags, url: str) -> FastAPI:
    """Return an application that is a page and nothing else."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers=error_handlers(),
    )

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    add_page(app, backend, flags, url)
    return app
