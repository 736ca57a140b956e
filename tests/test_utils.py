"""Programs end with one clear line, optional packages say how to install them, logs go where they should."""

import asyncio
import io
import logging
import sys

import pytest
import requests

from llava import utils
from llava.utils import (
    MissingPackageError,
    StreamToLogger,
    UserError,
    build_logger,
    check_moderation,
    import_optional,
    pretty_print_semaphore,
    run_program,
    violates_moderation,
)


def test_a_user_error_is_one_line_and_exit_code_2(capsys):
    def main():
        raise UserError("found 3 images,\n  expected 2")

    with pytest.raises(SystemExit) as ended:
        run_program(main)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == "error: found 3 images, expected 2\n"
    assert captured.out == ""


def test_ctrl_c_is_exit_code_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_program(main)
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_other_exceptions_keep_their_traceback_and_success_returns():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_program(broken)
    seen = []
    run_program(lambda: seen.append(1))
    assert seen == [1]


def test_an_optional_package_that_is_missing_says_how_to_install_it():
    with pytest.raises(MissingPackageError) as caught:
        import_optional("no_such_package.part", needed_for="training with --bits 4", install="llava[train]")
    message = str(caught.value)
    assert (
        "training with --bits 4 needs the package 'no_such_package.part', which is not installed" in message
    )
    assert "pip install 'llava[train]'" in message
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    ("content", "cause"),
    [("raise OSError('libcuda.so is missing')", OSError), ("import no_such_dependency", ModuleNotFoundError)],
)
def test_an_optional_package_that_is_broken_keeps_the_reason(content, cause, tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackageError, match="is installed but does not import") as caught:
        import_optional("broken_package", needed_for="this", install="broken-package")
    assert isinstance(caught.value.__cause__, cause)
    assert str(caught.value.__cause__) in str(caught.value)


def test_an_optional_package_that_works_is_returned():
    assert import_optional("json", needed_for="this", install="json").loads("1") == 1


def test_stream_to_logger_logs_whole_lines(caplog):
    stream = StreamToLogger(logging.getLogger("some.stream"), logging.WARNING)
    with caplog.at_level(logging.WARNING, "some.stream"):
        print("first 100 % done\nsec", end="", file=stream)
        assert caplog.messages == ["first 100 % done"]
        print("ond", file=stream)
        print("rest", end="", file=stream)
        stream.flush()
    assert caplog.messages == ["first 100 % done", "second", "rest"]


@pytest.fixture
def clean_logging(monkeypatch):
    """A root logger without handlers, put back afterwards."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    monkeypatch.setattr(utils, "handler", None)
    yield root
    for handler in root.handlers:
        handler.close()
    root.setLevel(level)


def test_build_logger_writes_one_file_and_leaves_the_streams_alone(clean_logging, tmp_path):
    before = sys.stdout, sys.stderr
    logger = build_logger("worker", "worker.log", log_dir=tmp_path / "logs")
    assert build_logger("worker", "worker.log", log_dir=tmp_path / "logs") is logger
    logger.info("loaded %s", "the model")
    logging.getLogger("another.library").warning("careful")
    lines = (tmp_path / "logs" / "worker.log").read_text().splitlines()
    assert [line.split(" | ")[1:] for line in lines] == [
        ["INFO", "worker", "loaded the model"],
        ["WARNING", "another.library", "careful"],
    ]
    assert (sys.stdout, sys.stderr) == before
    assert utils.handler in clean_logging.handlers


def test_build_logger_captures_output_when_asked(clean_logging, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    build_logger("worker", "worker.log", log_dir=tmp_path, capture_output=True)
    print("printed")
    assert "| INFO | stdout | printed" in (tmp_path / "worker.log").read_text()


class Answer:
    def __init__(self, status_code, content):
        self.status_code, self.content = status_code, content

    def json(self):
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


@pytest.mark.parametrize(
    ("answer", "flagged", "reason"),
    [
        (Answer(200, {"results": [{"flagged": True}]}), True, "flagged the text"),
        (Answer(200, {"results": [{"flagged": False}]}), False, "nothing was flagged"),
        (Answer(429, {}), None, "status 429"),
        (Answer(200, {"results": []}), None, "unknown form"),
        (Answer(200, requests.exceptions.JSONDecodeError("no", "", 0)), None, "could not be asked"),
        (requests.exceptions.ConnectTimeout("too slow"), None, "too slow"),
    ],
)
def test_moderation_gives_a_clear_result(answer, flagged, reason, monkeypatch, caplog):
    sent = {}

    def post(url, **kwargs):
        sent.update(kwargs, url=url)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(requests, "post", post)
    result = check_moderation('a "quoted"\ntext')
    assert (result.flagged, reason in result.reason) == (flagged, True)
    assert sent["json"] == {"input": 'a "quoted"\ntext'}
    assert sent["timeout"] > 0
    assert violates_moderation("text") is bool(flagged)
    assert ("let through unchecked" in caplog.text) == (flagged is None)


def test_moderation_without_a_key_says_so(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        violates_moderation("text")


def test_semaphores_are_described():
    assert pretty_print_semaphore(None) == "None"
    assert pretty_print_semaphore(asyncio.Semaphore(3)) == "Semaphore(value=3, locked=False)"


def test_disable_torch_init_leaves_initial_values_on():
    import torch

    utils.disable_torch_init()
    assert torch.nn.Linear(4, 4).weight.abs().sum() > 0
    assert torch.nn.LayerNorm(4).weight.tolist() == [1.0] * 4


def test_reference_names_are_there():
    assert utils.server_error_msg and utils.moderation_msg
