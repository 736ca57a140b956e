"""run_llava: the README recipe, images and placeholders, a model passed in, and clear errors."""

import functools
import http.server
import os
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from warming import python

from llava.conversation import conv_templates
from llava.eval import run_llava
from llava.eval.run import question
from llava.inference.loading import open_model
from llava.mm_utils import ImageError, get_model_name_from_path
from llava.utils import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(checkpoints):
    return tuple(open_model(str(checkpoints / "llava-tiny-v1.5"), device="cpu"))


@pytest.fixture
def image_file(tmp_path):
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def recipe(checkpoints, image_file, **changes):
    """The object that the reference's README builds."""
    model_path = str(checkpoints / "llava-tiny-v1.5")
    fields = {
        "model_path": model_path,
        "model_base": None,
        "model_name": get_model_name_from_path(model_path),
        "query": "What is shown here?",
        "conv_mode": None,
        "image_file": image_file,
        "sep": ",",
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 12,
    }
    return type("Args", (), fields | changes)()


def test_readme_recipe_loads_asks_and_prints(checkpoints, image_file, capsys):
    answer = run_llava.eval_model(recipe(checkpoints, image_file))
    assert answer and capsys.readouterr().out == f"{answer}\n"


def test_a_model_passed_in_is_not_loaded_again(checkpoints, image_file, model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("loaded twice")

    alone = run_llava.eval_model(recipe(checkpoints, image_file))
    monkeypatch.setattr(question, "open_model", refuse)
    assert run_llava.eval_model(recipe(checkpoints, image_file), model=model) == alone


@pytest.mark.parametrize("query", ["<image-placeholder>\nWhat is it?", "<image>\nWhat is it?", "What is it?"])
def test_placeholders_name_the_place_of_the_image(checkpoints, image_file, model, query, monkeypatch):
    prompts = []
    original = question.ChatSession.ask

    def ask(session, *args, **kwargs):
        answer = original(session, *args, **kwargs)
        prompts.append(session.conversation.messages[0][1])
        return answer

    monkeypatch.setattr(question.ChatSession, "ask", ask)
    run_llava.eval_model(recipe(checkpoints, image_file, query=query), model=model)
    assert prompts == ["<image>\nWhat is it?"]


def test_several_images(checkpoints, image_file, model):
    two = f"{image_file};{image_file}"
    args = recipe(checkpoints, two, sep=";", query="Is <image-placeholder> like <image-placeholder>?")
    one = recipe(checkpoints, image_file, query="Is <image-placeholder> like that?")
    assert run_llava.eval_model(args, model=model) != run_llava.eval_model(one, model=model)


def test_image_parser_keeps_empty_parts(checkpoints):
    assert run_llava.image_parser(recipe(checkpoints, "a.png,,b.png")) == ["a.png", "", "b.png"]


def test_load_images_are_rgb(image_file, tmp_path):
    Image.new("L", (5, 4)).save(tmp_path / "grey.png")
    assert [one.mode for one in run_llava.load_images([image_file, str(tmp_path / "grey.png")])] == [
        "RGB"
    ] * 2


def test_images_may_be_urls(image_file):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=Path(image_file).parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        from_url, from_path = run_llava.load_images([url, image_file])
        server.shutdown()
    assert from_url.tobytes() == from_path.tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 2.0, "temperature": 0.5}, "top_p is 2.0"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"query": "<image-placeholder> or <image-placeholder>?"}, "names 2 image.* 1 came"),
        ({"query": "word " * 5000}, "prompt takes at least"),
        ({"conv_mode": "nope"}, "conv-mode is 'nope'"),
    ],
)
def test_bad_requests_are_one_sentence(checkpoints, image_file, model, changes, message):
    with pytest.raises(UserError, match=message):
        run_llava.eval_model(recipe(checkpoints, image_file, **changes), model=model)


def test_unreadable_image_is_said_before_the_model_is_loaded(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(question, "open_model", lambda *args, **kwargs: pytest.fail("loaded first"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match="text.png"):
        run_llava.eval_model(recipe(checkpoints, str(tmp_path / "text.png")))


def test_without_a_model_path_the_sentence_says_what_to_give(checkpoints, image_file):
    with pytest.raises(UserError, match="--model-path is missing; give the folder of a LLaVA checkpoint"):
        run_llava.eval_model(recipe(checkpoints, image_file, model_path=None))


def test_conv_mode_is_used(checkpoints, image_file, model):
    answers = {
        mode: run_llava.eval_model(recipe(checkpoints, image_file, conv_mode=mode), model=model)
        for mode in ("llava_v1", "llava_v0", "plain")
    }
    assert len(set(answers.values())) > 1
    assert conv_templates["llava_v1"].messages == []  # the shared template is not written to


def test_seed_repeats_a_random_answer(checkpoints, image_file, model):
    args = recipe(checkpoints, image_file, temperature=1.5, seed=7)
    first = run_llava.eval_model(args, model=model)
    torch.manual_seed(99)
    assert run_llava.eval_model(args, model=model) == first


def test_command_line_flags_and_defaults_are_the_references():
    args = vars(run_llava.build_parser().parse_args(["--image-file", "a.png", "--query", "What?"]))
    added = {"device": None, "seed": None}
    assert args == added | {
        "model_path": None,  # the reference: facebook/opt-350m, which is no LLaVA
        "model_base": None,
        "image_file": "a.png",
        "query": "What?",
        "conv_mode": None,
        "sep": ",",
        "temperature": 0.2,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 512,
    }


@pytest.mark.slow
def test_program_prints_the_answer_and_nothing_else(checkpoints, image_file, model):
    command = [
        python(),
        "-m",
        "llava.eval.run_llava",
        "--model-path",
        str(checkpoints / "llava-tiny-v1.5"),
    ]
    command += ["--image-file", image_file, "--query", "What is shown here?"]
    command += ["--temperature", "0", "--max_new_tokens", "12", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = run_llava.eval_model(recipe(checkpoints, image_file), model=model)
    assert done.stdout == f"{expected}\n"
    assert done.stderr == ""
