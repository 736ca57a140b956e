"""Page, API and engine in one process."""

from __future__ import annotations

import argparse

from fastapi import FastAPI

from llava.inference.engine import AnyEngine
from llava.serve.guard import PageGuard
from llava.serve.limits import Limits
from llava.serve.openai.launch import launch
from llava.serve.openai.settings import ServedModel
from llava.serve.web.flags import PageFlags
from llava.serve.web.launch import add_page
from llava.serve.web.local import EngineBackend


def serve_local(args: argparse.Namespace, flags: PageFlags, limits: Limits) -> None:
    """Load the model of the flags of llava.serve.openai_api; serve a page and the API. Raises UserError."""

    def add(app: FastAPI, engine: AnyEngine, model: ServedModel, url: str) -> None:
        add_page(app, EngineBackend(engine, model), flags, url)

    launch(args, limits, page=PageGuard(flags.embed), add=add)
