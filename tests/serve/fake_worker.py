"""A worker without a model, as the reference's protocol sees one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


def status(*models: str, speed: float = 1, queue_length: int = 0) -> dict:
    return {"model_names": list(models), "speed": speed, "queue_length": queue_length}


class Worker:
    """What a worker of the reference does, without a model: it counts to n."""

    def __init__(self, *models: str, n: int = 3, wait_s: float = 0.0, break_after: int | None = None) -> None:
        self.models, self.n, self.wait_s, self.break_after = models, n, wait_s, break_after
        self.headers: list[dict[str, str]] = []
        self.params: list[dict] = []
        self.left_early = threading.Event()
        self.stuck = threading.Event()
        self.app = Starlette(
            routes=[
                Route("/worker_generate_stream", self.generate, methods=["POST"]),
                Route("/worker_get_status", self.tell, methods=["POST"]),
            ]
        )

    async def tell(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        while self.stuck.is_set():
            await asyncio.sleep(0.01)
        return JSONResponse(status(*self.models))

    async def generate(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        self.params.append(await request.json())
        return StreamingResponse(self.frames(self.params[-1]["prompt"]))

    async def frames(self, text: str) -> AsyncIterator[bytes]:
        ended = False
        try:
            for i in range(self.n):
                if i == self.break_after:
                    raise ConnectionError("the worker dies")
                text += f" {i}"
                yield json.dumps({"text": text, "error_code": 0}).encode() + b"\0"
                await asyncio.sleep(self.wait_s)
            ended = True
        finally:
            if not ended:
                self.left_early.set()
