"""The worker in front of SGLang: what it sends there, how answers and failures come back.

SGLang itself is not run: a small server answers as its documentation says.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from PIL import Image
from running import free_port, running, wait_until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llava.serve.workers.frames import read_frames
from llava.serve.workers.sglang import ModelWorker
from llava.utils import UserError


class Sglang:
    """What SGLang's native API does."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.how = "well"
        self.left_early = threading.Event()
        self.app = Starlette(
            routes=[
                Route("/get_model_info", self.info),
                Route("/generate", self.generate, methods=["POST"]),
            ]
        )

    async def info(self, request: Request) -> Response:
        return JSONResponse({"model_path": "/models/llava-v1.5-7b", "is_generation": True})

    async def generate(self, request: Request) -> Response:
        self.requests.append(await request.json())
        if self.how == "refuses":
            return JSONResponse({"error": {"message": "too long"}}, 400)
        return StreamingResponse(self.events(), media_type="text/event-stream")

    async def events(self) -> AsyncIterator[str]:
        ended = False
        try:
            text = ""
            for word in ["It", " is", " red"]:
                text += word
                yield f"data: {json.dumps({'text': text, 'meta_info': {}})}\n\n"
                if self.how == "breaks off":
                    return
                if self.how == "fails":
                    yield 'data: {"error": {"message": "out of memory"}}\n\n'
                    return
                if self.how == "hangs":
                    await asyncio.sleep(60)
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.left_early.set()


@pytest.fixture
def sglang() -> Iterator[tuple[Sglang, str]]:
    made = Sglang()
    with running(made.app) as address:
        yield made, address


def make_worker(address: str, **more: object) -> ModelWorker:
    return ModelWorker("", "http://localhost:1", address, "id", True, None, **more)  # type: ignore[arg-type]


def ask(worker: ModelWorker, **params: object) -> list[dict]:
    return list(read_frames(worker.generate_stream_gate({"prompt": "p", **params})))


def test_an_answer_and_what_is_sent_for_it(sglang: tuple[Sglang, str]) -> None:
    server, address = sglang
    worker = make_worker(address + "/")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "BMP")
    image = base64.b64encode(buffer.getvalue()).decode()
    frames = ask(
        worker,
        prompt="<image> USER:",
        images=[image],
        temperature=0.2,
        top_p=0.7,
        max_new_tokens=9,
        stop="###",
    )
    assert [one["text"] for one in frames] == [
        "<image> USER:It", "<image> USER:It is", "<image> USER:It is red"
    ]  # fmt: skip
    (sent,) = server.requests
    assert sent["text"] == "<image> USER:" and sent["stream"] is True
    assert sent["sampling_params"] == {
        "temperature": 0.2, "top_p": 0.7, "max_new_tokens": 9, "stop": ["###"]
    }  # fmt: skip
    (given,) = sent["image_data"]
    again = Image.open(io.BytesIO(base64.b64decode(given)))
    assert (again.format, again.size, again.getpixel((0, 0))) == ("PNG", (4, 3), (255, 0, 0))
    assert worker.get_status() == {"model_names": ["llava-v1.5-7b"], "speed": 1, "queue_length": 0}


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("refuses", "backend_error", "HTTP status 400"),
        ("breaks off", "backend_gone", "broke off"),
        ("fails", "backend_error", "out of memory"),
    ],
)
def test_failures_of_sglang_are_told(sglang: tuple[Sglang, str], how: str, code: str, words: str) -> None:
    server, address = sglang
    server.how = how
    worker = make_worker(address)
    last = ask(worker)[-1]
    assert last["error_code"] == 1 and last["error"]["code"] == code and words in last["text"]
    server.how = "well"
    assert ask(worker)[-1]["text"] == "pIt is red" and worker.get_queue_length() == 0


@pytest.mark.parametrize("image", ["/etc/passwd", "http://169.254.169.254/", "file:///etc/passwd"])
def test_sglang_is_never_sent_a_path_or_an_address(sglang: tuple[Sglang, str], image: str) -> None:
    server, address = sglang
    (only,) = ask(make_worker(address), prompt="<image>", images=[image])
    assert only["error_code"] == 1 and server.requests == []


def test_who_waits_gets_frames_and_who_leaves_ends_the_answer(sglang: tuple[Sglang, str]) -> None:
    server, address = sglang
    server.how = "hangs"
    worker = make_worker(address, limit_model_concurrency=1)
    first = worker.generate_stream_gate({"prompt": "first "})
    second = worker.generate_stream_gate({"prompt": "second"})
    assert json.loads(next(first)[:-1])["text"] == "first It"
    assert json.loads(next(second)[:-1]) == {"text": "second", "error_code": 0}
    assert worker.get_queue_length() == 2
    second.close()
    first.close()
    wait_until(server.left_early.is_set)
    assert worker.get_queue_length() == 0


def test_without_sglang_the_worker_says_what_to_start() -> None:
    with pytest.raises(UserError, match="--sgl-endpoint .*launch_server"):
        make_worker(f"http://127.0.0.1:{free_port()}")
