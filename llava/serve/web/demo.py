"""The reference's functions for programs that build the page themselves, in front of a controller."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import gradio as gr

from llava.constants import LOGDIR
from llava.serve.web.flags import PageFlags
from llava.serve.web.launch import make_page
from llava.serve.web.remote import ControllerBackend

CONTROLLER = "http://localhost:21001"


def get_model_list(controller_url: str = CONTROLLER, *, api_key: str | None = None) -> list[str]:
    """Return the names of a controller's models. Raises ServeError."""
    return asyncio.run(ControllerBackend(controller_url, api_key=api_key).models())


def build_demo(
    embed_mode: bool,
    cur_dir: str | Path | None = None,
    concurrency_count: int = 10,
    *,
    controller_url: str = CONTROLLER,
    log_dir: str | None = LOGDIR,
) -> gr.Blocks:
    """Return the page for `launch()` or for mounting; the models are asked for when it is opened.

    cur_dir: folder for what is uploaded (default: a temporary one). What launches it decides who may ask:
    the guards of the programs are not part of it.
    """
    folder = Path(tempfile.mkdtemp(prefix="llava-page-") if cur_dir is None else cur_dir)
    flags = PageFlags(concurrency_count, embed_mode, False, False, log_dir, reload_models=True)
    return make_page(ControllerBackend(controller_url), flags, folder)
