"""The application: endpoints, errors in OpenAI's form, and the limits in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from llava.inference.engine import AnyEngine
from llava.serve.errors import App, Receive, Scope, Send, WatchedSend, send_error
from llava.serve.guard import error_handlers, guards
from llava.serve.openai.answering import ClientGone, serve_error
from llava.serve.openai.chat import create_chat_completion
from llava.serve.openai.completions import create_completion
from llava.serve.openai.document import body_of, describe, failures
from llava.serve.openai.metrics import CONTENT_TYPE, ServerMetrics
from llava.serve.openai.models import Models, OneModel
from llava.serve.openai.responses import create_response
from llava.serve.openai.schema import ChatRequest, CompletionRequest, ResponseRequest
from llava.serve.openai.service import Service
from llava.serve.openai.settings import ClientSettings, ServedModel, ServerSettings

N_THREADS = 64
_STREAMS = {"content": {"application/json": {}, "text/event-stream": {}}, "description": "The answer"}


def create_app(engine: AnyEngine, settings: ServerSettings) -> FastAPI:
    """Return the application of a model; it closes the engine when the server ends."""
    return create_app_for(OneModel(engine, settings.model), settings)


def create_app_for(models: Models, settings: ClientSettings) -> FastAPI:
    """Return the application of several models; it closes them when the server ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # tokenizing, decoding and looking hosts up run in threads; slow look-ups would fill asyncio's own few
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(N_THREADS, "llava-serve"))
        yield
        await asyncio.to_thread(models.close)

    metrics = ServerMetrics(models)
    service = Service(models, settings, metrics)
    app = FastAPI(
        title="LLaVA",
        version="1",  # of the protocol
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # they would lead to whatever the Host header says
        lifespan=lifespan,
        middleware=_guards(settings, metrics),
        exception_handlers={**error_handlers(), ClientGone: _gone},
    )
    _add_answers(app, service)
    _add_reading(app, service)
    describe(app, with_key=settings.api_key is not None)
    return app


def _guards(settings: ClientSettings, metrics: ServerMetrics) -> list[Middleware]:
    """Return what stands in front of the endpoints, the outermost first: strangers are turned away early."""

    def ended(scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")  # only a path that is known may be a label
        metrics.request_ended(str(getattr(route, "path", "other")), status, seconds)

    found = guards(api_key=settings.api_key, limits=settings.limits, on_end=ended, page=settings.page)
    return [*found, Middleware(Faults)]


class Faults:
    """Turns an exception that nobody expected into an error with the request's id; the log has the rest."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        watched = WatchedSend(send)
        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            told = serve_error(error)
            if watched.begun:
                raise
            await send_error(send, told)


def _add_answers(app: FastAPI, service: Service) -> None:
    """Add the endpoints that generate."""
    errors = failures(has_body=True)

    @app.post("/v1/chat/completions", responses={200: _STREAMS, **errors}, openapi_extra=body_of(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        return await create_chat_completion(service, request)

    @app.post(
        "/v1/completions", responses={200: _STREAMS, **errors}, openapi_extra=body_of(CompletionRequest)
    )
    async def completions(request: Request) -> Response:
        return await create_completion(service, request)

    @app.post("/v1/responses", responses={200: _STREAMS, **errors}, openapi_extra=body_of(ResponseRequest))
    async def responses(request: Request) -> Response:
        return await create_response(service, request)


def _add_reading(app: FastAPI, service: Service) -> None:
    """Add the endpoints that tell: models, health, numbers."""
    errors = failures(has_body=False)
    models = service.models

    def described(name: str, model: ServedModel) -> dict[str, Any]:
        length = {} if model.context is None else {"max_model_len": model.context}
        return {"id": name, "object": "model", "created": model.created, "owned_by": "llava", **length}

    @app.get("/v1/models", responses=errors)
    async def list_models() -> JSONResponse:
        known = await models.listed()
        return JSONResponse({"object": "list", "data": [described(*one) for one in known.items()]})

    @app.get("/v1/models/{name:path}", responses=errors)
    async def retrieve_model(name: str) -> JSONResponse:
        return JSONResponse(described(name, (await models.find(name)).model))

    @app.get("/health", responses=errors)
    async def health() -> JSONResponse:
        await models.check_health()
        return JSONResponse({"status": "ok"})

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {}}, "description": "Numbers for Prometheus"}
    }

    @app.get("/metrics", responses={**text, **errors}, response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
