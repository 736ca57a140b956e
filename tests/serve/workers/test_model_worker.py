"""The worker with a model: frames, failures, waiting and leaving, and its life with a controller."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import requests
from PIL import Image
from running import free_port, running, wait_until

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.inference.chat import ChatSession
from llava.inference.sampling import SamplingParams
from llava.serve.controller import Controller
from llava.serve.guard import guard
from llava.serve.workers import base
from llava.serve.workers.base import create_app
from llava.serve.workers.controller_app import create_app as controller_app
from llava.serve.workers.frames import read_frames
from llava.serve.workers.model import TOO_LONG, ModelWorker

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"
NAME = "llava-tiny-v1.5"


def make_worker(controller: str = "", address: str = "http://localhost:1", **more: object) -> ModelWorker:
    before = os.getcwd()
    os.chdir(CHECKPOINTS)  # the checkpoint names its tower by a folder beside it
    try:
        return ModelWorker(
            *(controller, address, "id", not controller, NAME, None, None),
            device="cpu",
            **more,  # type: ignore[arg-type]
        )
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def worker() -> Iterator[ModelWorker]:
    made = make_worker(limit_model_concurrency=2)
    yield made
    made.close()


def sample_image(color: str = "red") -> Image.Image:
    return Image.new("RGB", (40, 30), color)


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def prompt_of(text: str) -> str:
    dialog = conv_templates["vicuna_v1"].copy()
    dialog.append_message(dialog.roles[0], text)
    dialog.append_message(dialog.roles[1], None)
    return dialog.get_prompt()


def ask(worker: ModelWorker, prompt: str, **params: object) -> list[dict]:
    settings = {"temperature": 0, "max_new_tokens": 8, "stop": "</s>", **params}
    return list(read_frames(worker.generate_stream_gate({"model": NAME, "prompt": prompt, **settings})))


# ---- answers ----


@pytest.mark.parametrize("images", [[], [sample_image()], [sample_image(), sample_image("blue")]])
def test_the_answer_is_that_of_a_chat(worker: ModelWorker, images: list[Image.Image]) -> None:
    session = ChatSession(*worker.loaded[:3], template="vicuna_v1")
    expected = session.ask("What is it?", images, SamplingParams(temperature=0, max_new_tokens=8))
    prompt = prompt_of(f"{DEFAULT_IMAGE_TOKEN}\n" * len(images) + "What is it?")
    frames = ask(worker, prompt, images=[encoded(one) for one in images])
    texts = [one["text"] for one in frames]
    assert texts[-1] == prompt + expected and expected
    assert all(one["error_code"] == 0 for one in frames)
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert texts[0].startswith(prompt)


def test_what_a_request_leaves_out_has_the_reference_s_defaults(worker: ModelWorker) -> None:
    from llava.serve.workers.params import WorkerParams

    read = WorkerParams.read({"prompt": "p"})
    assert read.sampling == SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=256)
    read = WorkerParams.read(
        {"prompt": "p", "temperature": 0.0005, "top_p": 0, "max_new_tokens": 5000, "stop": None}
    )
    assert (read.sampling.temperature, read.sampling.max_new_tokens) == (0, 1024)
    assert 0 < read.sampling.top_p < 1e-5 and read.sampling.stop == ()
    assert WorkerParams.read({"prompt": "p", "stop": "###"}).sampling.stop == ("###",)
    assert WorkerParams.read({"prompt": "p", "stop": ["a", "b"]}).sampling.stop == ("a", "b")


def test_what_a_worker_keeps_of_a_prompt_is_as_large_as_it_is_told() -> None:
    for size, cached in ((0, 0), (2**20, 8)):
        worker = make_worker(cache_bytes=size)
        asked = [ask(worker, prompt_of("Tell me of the sea."))[-1]["usage"] for _ in range(2)]
        assert [one["cached_tokens"] > cached for one in asked] == [False, size > 0]
        assert worker.engine.stats().cache_budget == size
        worker.close()


# ---- failures ----

BAD = {
    "no prompt": ({"prompt": None}, "prompt"),
    "prompt is a number": ({"prompt": 3}, "prompt"),
    "an image too few": ({"prompt": "<image> a"}, "images"),
    "an image too many": ({"prompt": "a", "images": [encoded(sample_image())]}, "images"),
    "images is a text": ({"images": "abc"}, "images"),
    "a path": ({"prompt": "<image>", "images": ["/etc/passwd"]}, None),
    "an address": ({"prompt": "<image>", "images": ["http://169.254.169.254/"]}, "images"),
    "a file address": ({"prompt": "<image>", "images": ["file:///etc/passwd"]}, "images"),
    "no image": ({"prompt": "<image>", "images": [base64.b64encode(b"text").decode()]}, None),
    "a broken image": ({"prompt": "<image>", "images": [encoded(sample_image())[:60]]}, None),
    "too many images": ({"prompt": "<image>" * 65, "images": [encoded(sample_image())] * 65}, "images"),
    "temperature": ({"temperature": "hot"}, "temperature"),
    "top_p": ({"top_p": [1]}, "top_p"),
    "top_p above 1": ({"top_p": 2}, None),
    "max_new_tokens": ({"max_new_tokens": 0}, None),
    "infinite max_new_tokens": ({"max_new_tokens": float("inf")}, "max_new_tokens"),
    "stop": ({"stop": 3}, "stop"),
    "another model": ({"model": "gpt"}, "model"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_request_that_cannot_be_answered_ends_in_code_1_and_says_why(
    worker: ModelWorker, case: str
) -> None:
    wrong, param = BAD[case]
    (only,) = ask(worker, **{"prompt": "p", "temperature": 0, **wrong})  # type: ignore[arg-type]
    assert only["error_code"] == 1 and only["error"]["type"] == "invalid_request_error"
    if param is not None:
        assert only["error"]["param"] == param
    assert only["error"]["message"] in only["text"] and "Traceback" not in only["text"]
    assert ask(worker, prompt_of("Hello"))[-1]["error_code"] == 0  # and the next one is answered


def test_a_prompt_that_is_too_long_is_told_as_the_reference_tells_it(worker: ModelWorker) -> None:
    prompt = "word " * 5000
    (only,) = ask(worker, prompt)
    assert only["text"] == prompt + TOO_LONG and only["error_code"] == 0
    assert only["error"]["code"]


# ---- waiting and leaving ----


def test_who_waits_gets_frames_and_who_leaves_frees_the_place() -> None:
    worker = make_worker(limit_model_concurrency=1)
    long = {"prompt": prompt_of("Tell me."), "temperature": 0, "max_new_tokens": 1024}
    begin = threading.Event()
    step = worker.loaded.model.forward

    def slow(*args: object, **kwargs: object) -> object:
        begin.wait(20)
        return step(*args, **kwargs)

    worker.loaded.model.forward = slow
    try:
        first, second = worker.generate_stream_gate(long), worker.generate_stream_gate(long)
        frames = [next(first), next(second), next(second)]
        assert all(json.loads(one[:-1]) == {"text": long["prompt"], "error_code": 0} for one in frames)
        assert worker.get_queue_length() == 2
        templates = {NAME: "llava_v1"}
        assert worker.get_status() == {
            "model_names": [NAME],
            "speed": 1,
            "queue_length": 2,
            "templates": templates,
            "messages": [NAME],
        }
        second.close()
        first.close()
        begin.set()
        wait_until(lambda: worker.get_queue_length() == 0)
    finally:
        del worker.loaded.model.forward
        worker.close()


# ---- with a controller ----


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heart beats that a test can wait for."""
    monkeypatch.setattr(base, "WORKER_HEART_BEAT_INTERVAL", 0.05)
    monkeypatch.setattr(base, "RETRY_S", 0.05)


def old_page(address: str, prompt: str) -> list[dict]:
    """Ask as the reference's web page does."""
    response = requests.post(
        f"{address}/worker_generate_stream",
        headers={"User-Agent": "LLaVA Client"},
        json={
            "model": NAME, "prompt": prompt, "temperature": 0.0, "top_p": 0.7, "max_new_tokens": 6,
            "stop": "</s>", "images": [],
        },
        stream=True,
        timeout=10,
    )  # fmt: skip
    lines = response.iter_lines(decode_unicode=False, delimiter=b"\0")
    return [json.loads(one.decode()) for one in lines if one]


@pytest.mark.usefixtures("quick")
def test_a_worker_finds_its_controller_whatever_comes_first_and_after_a_restart() -> None:
    port, own_port = free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    worker = make_worker(address, f"http://127.0.0.1:{own_port}")
    with running(guard(create_app(lambda: worker), api_key=None), own_port):
        for _ in range(2):
            controller = Controller("shortest_queue")
            with running(guard(controller_app(lambda found=controller: found), api_key=None), port):
                wait_until(lambda found=controller: found.list_models() == [NAME])
                prompt = prompt_of("Hello")
                assert old_page(address, prompt)[-1]["text"].startswith(prompt)
                status = httpx2.post(f"{address}/worker_get_status").json()
                assert status == {"model_names": [NAME], "speed": 1, "queue_length": 0}
            controller.close()
        worker.close()
        wait_until(lambda: not worker.heart_beat_thread.is_alive())
        assert httpx2.get(f"http://127.0.0.1:{own_port}/health").status_code == 503


@pytest.mark.usefixtures("quick")
def test_a_worker_works_with_the_key_of_its_controller() -> None:
    key = "k" * 16
    controller = Controller("shortest_queue", api_key=key)
    own_port = free_port()
    with running(guard(controller_app(lambda: controller), api_key=key)) as address:
        worker = make_worker(address, f"http://127.0.0.1:{own_port}", api_key=key)
        with running(guard(create_app(lambda: worker), api_key=key), own_port) as at:
            wait_until(lambda: controller.list_models())
            params = {"model": NAME, "prompt": "p", "max_new_tokens": 2}
            frames = list(read_frames(controller.worker_api_generate_stream(params)))
            assert frames[-1]["error_code"] == 0
            assert httpx2.post(f"{at}/worker_generate_stream", json=params).status_code == 401
        worker.close()
    controller.close()


@pytest.mark.parametrize("answer", [b"null", b"{}", b'"text"', b"<html>", b'{"exist": 1}'])
def test_answers_of_a_controller_that_make_no_sense_do_not_end_the_heart_beats(
    quick: None, answer: bytes
) -> None:
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    seen: list[str] = []

    async def any_path(request: object) -> Response:
        seen.append(request.url.path)  # type: ignore[attr-defined]
        return Response(answer, media_type="application/json")

    app = Starlette(routes=[Route("/{path}", any_path, methods=["POST"])])
    with running(app) as address:
        worker = make_worker(address)
        wait_until(lambda: len(seen) > 4)
        assert worker.heart_beat_thread.is_alive() and "/register_worker" in seen
        worker.close()
