"""register_worker and test_message: what they send, what they print, and how they fail."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from fake_worker import Worker, status
from running import free_port, running

from llava.serve import register_worker, test_message
from llava.serve.controller import Controller
from llava.serve.errors import ServeError
from llava.serve.guard import guard
from llava.serve.workers.client import call
from llava.serve.workers.controller_app import create_app
from llava.serve.workers.frames import ErrorCode, FrameError, error_frame, frame, read_frames
from llava.utils import UserError

KEY = "k" * 16


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller("shortest_queue")
    yield made
    made.close()


def run(program: object, *flags: str) -> None:
    program.main(program.build_parser().parse_args(flags))  # type: ignore[attr-defined]


def test_registering_a_worker_by_hand(controller: Controller) -> None:
    with (
        running(Worker("m").app) as worker,
        running(guard(create_app(lambda: controller), api_key=KEY)) as address,
    ):
        # the reference's documentation abbreviates
        run(register_worker, "--controller", address, "--worker", worker, "--check", "--api-key", KEY)
        assert controller.list_models() == ["m"] and controller.worker_info[worker].check_heart_beat
        with pytest.raises(UserError, match="refuses the request: the API key is missing or wrong"):
            run(register_worker, "--controller", address, "--worker", worker)
        with pytest.raises(UserError, match=r"refuses the request: a worker at '10\.0\.0\.1' is not allowed"):
            run(register_worker, "--controller", address, "--worker", "http://10.0.0.1", "--api-key", KEY)


def test_a_worker_that_does_not_answer_is_not_said_to_be_registered(controller: Controller) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with (
        running(create_app(lambda: controller)) as address,
        pytest.raises(UserError, match=f"did not take {nobody} in: .*; is the worker running"),
    ):
        run(register_worker, "--controller", address, "--worker", nobody)
    assert not controller.worker_info


@pytest.mark.parametrize("through", ["controller", "worker"])
def test_a_message_is_answered(
    controller: Controller, through: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = Worker("llava-v1.5-7b")
    with running(worker.app) as at, running(create_app(lambda: controller)) as address:
        controller.register_worker(at, True, None)
        where = ["--controller", address] if through == "controller" else ["--worker", at]
        run(test_message, *where, "--message", "Count.", "--max-new-tokens", "7")
    (params,) = worker.params
    prompt = params["prompt"]
    assert "USER: Count. ASSISTANT:" in prompt and params["stop"] == "</s>"
    assert (params["model"], params["max_new_tokens"]) == ("llava-v1.5-7b", 7)
    assert capsys.readouterr().out == f"{prompt}  0 1 2\n"


def test_messages_of_failures(controller: Controller) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match="does not answer as a controller or worker"):
        run(test_message, "--worker", nobody)
    with pytest.raises(UserError, match="does not answer as a controller or worker"):
        run(test_message, "--worker", "no address")
    broken = Worker("m", n=3, break_after=1)
    with running(broken.app) as at, running(create_app(lambda: controller)) as address:
        with pytest.raises(UserError, match="--model-name is missing; the controller's models are: none"):
            run(test_message, "--controller", address)
        with pytest.raises(UserError, match="no worker has the model 'x'"):
            run(test_message, "--controller", address, "--model-name", "x")
        with pytest.raises(UserError, match="does not answer"):
            run(test_message, "--worker", at)
        controller.register_worker(at, True, status("a", "b"))
        with pytest.raises(UserError, match="the controller's models are: a, b"):
            run(test_message, "--controller", address)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--message", " "], "--message is empty; write a question"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; expected a whole number of at least 1"),
    ],
)
def test_what_no_worker_can_answer_is_refused_before_one_is_asked(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        run(test_message, "--worker", f"http://127.0.0.1:{free_port()}", *words)
    assert str(refused.value) == told


@pytest.mark.parametrize("code", [1, 0])
def test_a_failure_is_told_without_the_words_for_a_page(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 0: a prompt that is too long, which the reference tells as the answer's text."""

    class Failing(Worker):
        async def frames(self, text: str) -> AsyncIterator[bytes]:
            yield error_frame(ErrorCode(code), ServeError(400, "the prompt is too long", code="x"))

    with running(Failing("m").app) as at, pytest.raises(UserError) as failed:
        run(test_message, "--worker", at)
    assert str(failed.value) == f"the prompt is too long (error_code: {code})"
    assert capsys.readouterr().out.endswith("Assistant: \n")  # the sentence has a line of its own


# ---- frames ----


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_frames_are_read_however_they_are_cut(size: int) -> None:
    texts = ["", "a\0b", "ü\n", "\u2028", "x" * 50]
    raw = b"".join(frame(one) for one in texts)
    assert raw.count(b"\0") == len(texts)
    cut = (raw[i : i + size] for i in range(0, len(raw), size))
    assert [one["text"] for one in read_frames(cut)] == texts


@pytest.mark.parametrize(
    "raw",
    [b"no json\0", b"[1]\0", b'{"text": 1, "error_code": 0}\0', b'{"text": "x"}\0', b'{"text": "x", "err'],
)
def test_what_is_no_frame_is_named(raw: bytes) -> None:
    with pytest.raises(FrameError):
        list(read_frames([raw]))


def test_a_frame_without_end_is_not_kept_for_ever() -> None:
    with pytest.raises(FrameError, match="longer than"):
        list(read_frames(b"x" * (1 << 20) for _ in range(100)))


def test_certificates_are_read_once_and_not_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.serve.workers.frames import open_client

    open_client(None).close()
    read = []
    monkeypatch.setattr(ssl, "create_default_context", lambda *a, **k: read.append(a))
    for name in ("load_verify_locations", "load_default_certs"):
        monkeypatch.setattr(ssl.SSLContext, name, lambda *a, **k: read.append(a))
    with running(Worker("m").app) as at:
        call(at, "/worker_get_status", api_key=None)
        open_client(None).close()
    assert read == []


def test_clients_use_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.serve.workers.frames import open_client

    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with running(Worker("m").app) as at, open_client(None) as client:
        assert client.post(f"{at}/worker_get_status").json() == status("m")
        with pytest.raises(httpx2.ConnectError):
            httpx2.post(f"{at}/worker_get_status")
