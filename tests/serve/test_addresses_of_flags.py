"""Flags of servers that could never work are refused before anything is loaded or listened to."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from llava.serve import gradio_web_server, model_worker, openai_api, sglang_worker, test_message
from llava.serve.web.flags import read_page_flags
from llava.utils import UserError

USELESS = "localhost:40000 http:// http://:80 ftp://a:1 http://a:b http://a:99999 http:/a"
ADDRESSES = [*USELESS.split(), ""]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("flag", ["--worker-address", "--controller-address"])
def test_a_worker_says_which_address_is_none(flag: str, address: str) -> None:
    args = model_worker.build_parser().parse_args(["--model-path", "none", f"{flag}={address}"])
    with pytest.raises(UserError, match=f"{flag} is '{address}'; expected http://host:port"):
        model_worker.main(args)


@pytest.mark.parametrize("address", ADDRESSES[:-1])
def test_so_do_the_other_servers(address: str) -> None:
    args = sglang_worker.build_parser().parse_args([f"--sgl-endpoint={address}"])
    with pytest.raises(UserError, match=f"--sgl-endpoint is '{address}'; expected http://host:port"):
        sglang_worker.main(args)
    with pytest.raises(UserError, match=f"--controller-address is '{address}'; expected http://host:port"):
        openai_api.main([f"--controller-address={address}"])
    args = gradio_web_server.build_parser().parse_args([f"--controller-url={address}"])
    with pytest.raises(UserError, match=f"--controller-url is '{address}'; expected http://host:port"):
        gradio_web_server.main(args)


@pytest.mark.parametrize("name", ["", "  ", "a\nb"])
def test_a_model_has_a_name_that_can_be_asked_for(name: str) -> None:
    with pytest.raises(UserError, match="--served-model-name holds .*; expected names"):
        openai_api.main(["--model-path", "none", "--served-model-name", "digits", name])


def test_a_folder_of_logs_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for given in (tmp_path / "file", tmp_path / "file/below"):
        words = ["--log-dir", str(given)]
        with pytest.raises(UserError, match="--log-dir is .*file.*; name another folder, or --no-log"):
            read_page_flags(gradio_web_server.build_parser().parse_args(words))
        read_page_flags(gradio_web_server.build_parser().parse_args([*words, "--no-log"]))
    read_page_flags(gradio_web_server.build_parser().parse_args(["--log-dir", str(tmp_path / "new")]))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["", "  ", "a\nb"])
@pytest.mark.parametrize("program", [model_worker, sglang_worker, test_message], ids=lambda one: one.__name__)
def test_a_name_that_nobody_can_ask_for_is_no_model_name(program: ModuleType, name: str) -> None:
    needed = {model_worker: ["--model-path", "x"], sglang_worker: ["--sgl-endpoint", "http://localhost:9"]}
    args = program.build_parser().parse_args([*needed.get(program, []), "--model-name", name])
    with pytest.raises(UserError, match="--model-name is .*; expected a name that clients can ask for"):
        program.main(args)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--local", "--model-path", "x", "--controller-url", "http://a:1"],
            "--controller-url is for a page in",
        ),
        (
            ["--local", "--model-path", "x", "--model-list-mode", "reload"],
            "--model-list-mode is for a page in",
        ),
        (["--model-path", "x"], "--model-path is for --local"),
        (["--model-base", "x"], "--model-base is for --local"),
        (["--device", "cpu"], "--device is for --local"),
        (["--load-4bit"], "--load-4bit is for --local"),
        (["--conv-mode", "v1"], "--conv-mode is for --local"),
        (["--dtype", "float16"], "--dtype is for --local"),
        (["--compile"], "--compile is for --local"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_a_page_takes_no_flag_of_the_other_source_of_answers(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        gradio_web_server.main(gradio_web_server.build_parser().parse_args([*words, "--port", "-1"]))
    assert str(refused.value).startswith(told)
