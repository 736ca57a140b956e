"""A server as the model: images in messages, bounded concurrency, retries, and what no retry mends."""

import base64
import io
import time

import pytest
from fake_server import completion, fake_server
from PIL import Image

from llava.eval.run.answering import answer_plan
from llava.eval.run.plan import make_plan
from llava.eval.run.server import ServerModel, address_of
from llava.eval.tasks.base import Ask, PackedImage
from llava.eval.tasks.digits import Digits
from llava.inference.sampling import SamplingParams
from llava.utils import UserError

GREEDY = SamplingParams(temperature=0, max_new_tokens=6)


def text_of(body):
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def server_model(server, **settings):
    return ServerModel(server.url, GREEDY, **{"sleep": lambda seconds: None, **settings})


def test_a_plan_is_answered_by_a_server_and_resumed(data, tmp_path):
    def reply(body, times):
        time.sleep(0.02)
        return completion(f" said: {text_of(body)} ")

    with fake_server(reply) as server:
        model = server_model(server, concurrency=3, api_key="secret")
        plan = make_plan(Digits(), data)
        done = answer_plan(plan, model, tmp_path / "a.jsonl", quiet=True)
        assert [one["text"] for one in done.records] == [f"said: {one.text}" for one in plan.asks]
        assert {one["model_id"] for one in done.records} == {"fake"}
        assert 1 < server.most <= 3
        assert server.headers[0]["Authorization"] == "Bearer secret"
        n_requests = len(server.bodies)
        assert answer_plan(plan, model, tmp_path / "a.jsonl", quiet=True).asked == 0
        assert len(server.bodies) == n_requests == 12
        assert model.facts["models_returned"] == ["fake-1"]
    two = next(one for one in server.bodies if isinstance(one["messages"][0]["content"], list))
    kinds = [one["type"] for one in two["messages"][0]["content"]]
    assert kinds[-1] == "text" and set(kinds[:-1]) == {"image_url"}
    assert (two["temperature"], two["max_tokens"], "top_p" in two) == (0, 6, False)


FAULTS = {
    "rate limit": (429, {"error": {"message": "slow down"}}),
    "overloaded": (503, b"busy"),
    "hung up": (0, b""),
    "no JSON": (200, b"<html>"),
    "no choices": (200, {"choices": []}),
    "a list": (200, [1]),
    "no text": completion(None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_tried_again(fault):
    with fake_server(lambda body, times: FAULTS[fault] if times < 3 else completion("yes")) as server:
        model = server_model(server)
        (outcome,) = model.answer({7: Ask(1, "Is it?")})
        assert (outcome.index, outcome.text, outcome.error) == (7, "yes", None)
        assert model.facts["retries"] == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_fails_its_question_alone(fault):
    def reply(body, times):
        return FAULTS[fault] if "bad" in text_of(body) else completion("yes")

    with fake_server(reply) as server:
        model = server_model(server, retries=2)
        found = {
            one.index: one for one in model.answer({0: Ask(1, "good"), 1: Ask(2, "bad"), 2: Ask(3, "good 2")})
        }
        assert [found[0].text, found[2].text] == ["yes", "yes"]
        assert "no answer after 3 tries" in (found[1].error or "")


def test_a_refused_question_is_not_tried_again():
    with fake_server(lambda body, times: (400, {"error": {"message": "too long"}})) as server:
        model = server_model(server)
        (outcome,) = model.answer({0: Ask(1, "x")})
        assert "HTTP status 400 (too long)" in (outcome.error or "") and len(server.bodies) == 1


@pytest.mark.parametrize(("status", "remedy"), [(401, "--api-key"), (404, "--base-url")])
def test_a_wrong_key_or_address_ends_the_run(status, remedy):
    with (
        fake_server(lambda body, times: (status, {"error": {"message": "no"}})) as server,
        pytest.raises(UserError, match=remedy),
    ):
        list(server_model(server).answer({number: Ask(number, "x") for number in range(50)}))
    assert len(server.bodies) <= 16


def test_nobody_at_the_address_is_one_sentence():
    with pytest.raises(UserError, match="no server answers at http://127.0.0.1:9/v1"):
        ServerModel("http://127.0.0.1:9/v1", GREEDY, timeout_s=2)
    with pytest.raises(UserError, match="--base-url is 'localhost:1'"):
        ServerModel("localhost:1", GREEDY)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9, float("nan")])
def test_a_time_that_nobody_can_wait_is_one_sentence(seconds):
    with pytest.raises(UserError, match="--request-timeout is .*; expected seconds, more than 0 and at most"):
        ServerModel("http://127.0.0.1:9/v1", GREEDY, timeout_s=seconds)


def test_image_files_go_as_they_are_and_others_as_png(tmp_path):
    image = Image.linear_gradient("L").convert("RGB")
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "a.bmp")
    data = (tmp_path / "a.jpg").read_bytes()
    jpeg = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    assert address_of(tmp_path / "a.jpg") == address_of(PackedImage(data, "a")) == jpeg
    assert address_of("https://host/a.png") == "https://host/a.png"
    for source in (image, tmp_path / "a.bmp"):
        head, _, encoded = address_of(source).partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).tobytes() == image.tobytes()
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(UserError, match=r"b\.png"):
        address_of(tmp_path / "b.png")


def test_a_server_that_is_gone_ends_the_run_and_one_that_comes_back_does_not():
    gone = [True]

    def reply(body, times):
        return FAULTS["hung up"] if gone[0] and text_of(body) != "0" else completion("yes")

    with fake_server(reply) as server:
        model = server_model(server, retries=1, concurrency=2)
        found = []
        with pytest.raises(
            UserError, match="is gone: .* [0-9]+ questions in a row, each tried 2 times; start it"
        ):
            for one in model.answer({number: Ask(number, str(number)) for number in range(500)}):
                found.append(one)
        assert len(found) < 30 and any(one.text == "yes" for one in found)
        gone[0] = False
        model = server_model(server, retries=1, concurrency=2)
        again = {number: Ask(number, str(number)) for number in range(40)}
        assert all(one.text == "yes" for one in model.answer(again))


def test_questions_that_some_connections_lose_do_not_end_the_run():
    def reply(body, times):
        return FAULTS["hung up"] if int(text_of(body)) % 3 else completion("yes")

    with fake_server(reply) as server:
        model = server_model(server, retries=0, concurrency=2)
        found = list(model.answer({number: Ask(number, str(number)) for number in range(120)}))
    assert sum(one.error is not None for one in found) == 80
