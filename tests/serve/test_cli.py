"""The chat program: flags, piped questions, Ctrl-C and end of input in a terminal, clear errors."""

import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from warming import python

from llava.conversation import conv_templates
from llava.inference.chat import ChatSession
from llava.inference.compiled import CompiledDecoder
from llava.inference.loading import open_model
from llava.inference.sampling import SamplingParams
from llava.serve import cli, terminal
from llava.utils import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def image_file(tmp_path):
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def arguments(model_path, image_file, *more):
    return [
        "--model-path",
        str(model_path),
        "--image-file",
        str(image_file),
        "--temperature",
        "0",
        "--max-new-tokens",
        "12",
        "--device",
        "cpu",
        *more,
    ]


class Keyboard(io.StringIO):
    """Lines that are typed at a terminal."""

    def isatty(self):
        return True


def chat(monkeypatch, lines, *args, typed=False):
    """Run main() in this process with piped questions, or with typed ones."""
    monkeypatch.setattr(sys, "stdin", Keyboard(lines) if typed else io.StringIO(lines))
    monkeypatch.setattr(terminal, "quiet_libraries", lambda: None)  # other tests want their warnings
    cli.main(cli.build_parser().parse_args(arguments(*args)))


def expected_answers(folder, template, image_file, questions):
    tokenizer, model, processor, _ = open_model(str(folder), device="cpu")
    session = ChatSession(tokenizer, model, processor, template=template)
    params = SamplingParams(temperature=0, max_new_tokens=12)
    return [session.ask(one, () if session.images else [image_file], params) for one in questions]


def test_flags_and_defaults_are_the_references():
    args = vars(cli.build_parser().parse_args([]))
    added = {"top_p": None, "seed": None, "compile": False, "dtype": None}
    added |= {"video_file": None, "frames": 32, "fps": 1.0}
    assert args == added | {
        "model_path": None,  # the reference: facebook/opt-350m, which is no LLaVA
        "model_base": None,
        "image_file": None,  # the reference: required; here there are text questions and /image, too
        "device": None,  # the reference: cuda; here the best device present
        "conv_mode": None,
        "temperature": 0.2,
        "max_new_tokens": 512,
        "load_8bit": False,
        "load_4bit": False,
        "debug": False,
    }


def test_compile(checkpoints, image_file, monkeypatch, capsys):
    compiled = []

    class Uncompiled(CompiledDecoder):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, backend=None)
            compiled.append(self)

    monkeypatch.setattr(terminal, "CompiledDecoder", Uncompiled)
    folder = checkpoints / "llava-tiny-v1.5"
    chat(monkeypatch, "What is this?\n", folder, image_file, "--compile")
    (expected,) = expected_answers(folder, "llava_v1", image_file, ["What is this?"])
    assert capsys.readouterr().out == f"USER: What is this?\nASSISTANT: {expected}\n"
    assert len(compiled) == 1
    with pytest.raises(UserError, match="llava_mpt cannot be compiled"):
        chat(monkeypatch, "Hi\n", checkpoints / "llava-tiny-mpt", image_file, "--compile")


@pytest.mark.parametrize(
    ("folder", "template", "user", "assistant"),
    [
        ("llava-tiny-v1.5", "llava_v1", "USER", "ASSISTANT"),
        ("llava-tiny-v1.6-mistral", "mistral_instruct", "USER", "ASSISTANT"),
        ("llava-tiny-mpt", "mpt", "user", "assistant"),
    ],
)
def test_piped_questions_give_just_the_dialog(
    checkpoints, image_file, monkeypatch, capsys, folder, template, user, assistant
):
    chat(monkeypatch, "What is this?\nAnd the colour?\n", checkpoints / folder, image_file)
    out, err = capsys.readouterr()
    first, second = expected_answers(
        checkpoints / folder, template, image_file, ["What is this?", "And the colour?"]
    )
    assert out == (
        f"{user}: What is this?\n{assistant}: {first}\n{user}: And the colour?\n{assistant}: {second}\n"
    )
    assert f"conversation mode: {template} (" in err
    assert "loading" in err and "on cpu" in err


def test_an_empty_line_ends_the_program(checkpoints, image_file, monkeypatch, capsys):
    chat(monkeypatch, "\nWhat is this?\n", checkpoints / "llava-tiny-v1.5", image_file)
    assert capsys.readouterr().out == ""


def test_given_conv_mode_is_used_and_the_mismatch_said(checkpoints, image_file, monkeypatch, capsys, caplog):
    chat(monkeypatch, "Hi\n", checkpoints / "llava-tiny-v1.5", image_file, "--conv-mode", "llava_v0")
    out, err = capsys.readouterr()
    assert out.startswith("Human: Hi\nAssistant: ")
    assert "conversation mode: llava_v0 (given" in err
    assert "llava_v1" in caplog.text


def test_main_accepts_the_references_arguments(checkpoints, image_file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    monkeypatch.setattr(terminal, "quiet_libraries", lambda: None)
    args = cli.build_parser().parse_args(arguments(checkpoints / "llava-tiny-v1.5", image_file))
    del args.top_p, args.seed
    cli.main(args)
    assert capsys.readouterr().out.startswith("USER: Hi\nASSISTANT: ")


def test_piped_error_ends_the_program(checkpoints, image_file, monkeypatch, capsys):
    with pytest.raises(UserError, match="prompt takes at least"):
        chat(monkeypatch, "word " * 5000 + "\n", checkpoints / "llava-tiny-v1.5", image_file)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--temperature", "nan", "temperature is nan"),
        ("--temperature", "-3", "temperature is -3.0"),
        ("--max-new-tokens", "0", "max_new_tokens is 0"),
        ("--top-p", "7", "top_p is 7.0"),
        ("--device", "toaster", "device is 'toaster'"),
        ("--conv-mode", "nope", "conv-mode is 'nope'"),
        ("--image-file", "missing.png", "missing.png"),
        ("--model-path", "/nowhere/llava-v1.5-7b", "/nowhere/llava-v1.5-7b"),
    ],
)
def test_bad_settings_are_one_sentence(checkpoints, image_file, monkeypatch, flag, value, message):
    with pytest.raises(UserError, match=message) as caught:
        chat(monkeypatch, "Hi\n", checkpoints / "llava-tiny-v1.5", image_file, f"{flag}={value}")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_unreadable_image_is_said_before_the_model_is_loaded(checkpoints, tmp_path, monkeypatch, content):
    (tmp_path / "bad.png").write_bytes(content)
    monkeypatch.setattr(terminal, "open_from_flags", lambda *args, **kwargs: pytest.fail("loaded first"))
    with pytest.raises(UserError, match="bad.png"):
        chat(monkeypatch, "Hi\n", checkpoints / "llava-tiny-v1.5", tmp_path / "bad.png")


def test_a_text_model_takes_questions_and_no_images(checkpoints, image_file, monkeypatch, capsys):
    folder = checkpoints / "vicuna-tiny"
    with pytest.raises(UserError, match="vicuna-tiny is a text model"):
        chat(monkeypatch, "Hi\n", folder, image_file)
    capsys.readouterr()
    chat(monkeypatch, f"Hi\n/image {image_file}\nWhy?\n", folder, "", typed=True)
    out, err = capsys.readouterr()
    assert (
        out.count("Human: Assistant: ") == 2 and "error: this is a text model without a vision tower" in err
    )


# ---- commands ----


@pytest.fixture
def other_file(tmp_path):
    Image.new("RGB", (40, 70), "red").save(tmp_path / "other one.png")
    return str(tmp_path / "other one.png")


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "piped"])
@pytest.mark.parametrize("start", ["", "image"])
@pytest.mark.parametrize(
    ("lines", "turns"),
    [
        (["Hi", "/image OTHER", "What?"], ["Hi", ("What?", "other")]),
        (["/image OTHER", "Hi", "What?"], [("Hi", "other"), "What?"]),
        (["/image 'OTHER'", "Hi"], [("Hi", "other")]),
        (["Hi", "/reset", "What?"], ["Hi", None, ("What?", "image")]),
        (
            ["Hi", "/image OTHER", "What?", "/reset", "Why?"],
            ["Hi", ("What?", "other"), None, ("Why?", "other")],
        ),
        (["/help", "Hi", "/exit", "What?"], ["Hi"]),
        ([" /help", "/usr is what?"], [" /help", "/usr is what?"]),
    ],
)
def test_commands(checkpoints, image_file, other_file, monkeypatch, capsys, lines, turns, start, typed):
    folder = checkpoints / "llava-tiny-v1.5"
    text = "".join(line.replace("OTHER", other_file) + "\n" for line in lines)
    chat(monkeypatch, text, folder, image_file if start else "", typed=typed)
    out, err = capsys.readouterr()
    tokenizer, model, processor, _ = open_model(str(folder), device="cpu")
    session = ChatSession(tokenizer, model, processor, template="llava_v1")
    params = SamplingParams(temperature=0, max_new_tokens=12)
    files = {"image": image_file if start else None, "other": other_file}
    first, expected = True, []
    for turn in turns:
        if turn is None:
            session.reset()
            continue
        question, name = (turn, None) if isinstance(turn, str) else turn
        file = files[name] if name else image_file if first and start else None
        expected.append((question, session.ask(question, [file] if file else (), params)))
        first = False
    if typed:
        shown = "".join(f"USER: ASSISTANT: {answer}\n" for _, answer in expected)
        assert re.sub("(USER: )+", "USER: ", out).startswith(shown) and out.endswith("bye\n")
    else:
        assert out == "".join(f"USER: {asked}\nASSISTANT: {answer}\n" for asked, answer in expected)
    assert ("/image PATH" in err) == ("/help" in lines)


def test_an_image_that_was_not_asked_about_is_told(checkpoints, image_file, other_file, monkeypatch, capsys):
    """One image goes with a question: of two in a row the second one."""
    lines = f"/image {other_file}\nHi\n/image {other_file}\n/image {image_file}\nWhat?\n"
    chat(monkeypatch, lines, checkpoints / "llava-tiny-v1.5", image_file)
    notes = [one for one in capsys.readouterr().err.splitlines() if "next question" in one]
    assert [one.endswith("next question, in place of the image before it") for one in notes] == [
        *(True, False, True)  # that of --image-file, none, and the second one of two
    ]


BAD_LINES = [
    ("/image", "/image needs the path"),
    ("/image /nowhere/b.png", "/nowhere/b.png"),
    ("/hepl", "/hepl is no command; the commands are /image, /reset, /help, /exit"),
    ("/reset now", "/reset takes nothing behind it, but 'now'"),
    ("word " * 5000, "prompt takes at least"),
    ("<image> <image>", "names 2 image"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[line[:12] for line, _ in BAD_LINES])
def test_an_error_leaves_no_empty_answer_and_nothing_behind(
    checkpoints, image_file, monkeypatch, capsys, line, message
):
    folder = checkpoints / "llava-tiny-v1.5"
    chat(monkeypatch, f"{line}\nWhat is this?\n", folder, image_file, typed=True)
    out, err = capsys.readouterr()
    (expected,) = expected_answers(folder, "llava_v1", image_file, ["What is this?"])
    assert out == f"USER: USER: ASSISTANT: {expected}\nUSER: \nbye\n"
    assert "error: " in err and message in err
    with pytest.raises(UserError) as caught:
        chat(monkeypatch, f"{line}\nWhat is this?\n", folder, image_file)
    assert message in str(caught.value)
    assert "ASSISTANT" not in capsys.readouterr().out


def test_without_a_model_path_the_sentence_says_what_to_give():
    with pytest.raises(UserError, match="--model-path is missing; give the folder of a LLaVA checkpoint"):
        cli.main(cli.build_parser().parse_args([]))


def test_shown_roles_have_no_markup():
    assert terminal.display_roles(conv_templates["chatml_direct"]) == ("user", "assistant")
    assert terminal.display_roles(conv_templates["llava_v1"]) == ("USER", "ASSISTANT")
    assert terminal.display_roles(conv_templates["plain"]) == ("USER", "ASSISTANT")


def program(*args):
    return [python(), "-m", "llava.serve.cli", *args]


@pytest.mark.slow
def test_program_in_a_pipe(checkpoints, image_file):
    folder = checkpoints / "llava-tiny-v1.5"
    done = subprocess.run(
        program(*arguments(folder, image_file)),
        input="What is this?\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (answer,) = expected_answers(folder, "llava_v1", image_file, ["What is this?"])
    assert done.stdout == f"USER: What is this?\nASSISTANT: {answer}\n"
    notes = done.stderr.splitlines()
    assert notes[0].startswith("loading ") and notes[1].startswith("conversation mode: llava_v1 (")
    assert notes[2:] in ([], ["the answer was cut at --max-new-tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["image", "model"])
def test_program_reports_what_is_missing_in_one_line(checkpoints, image_file, missing):
    folder = checkpoints / "llava-tiny-v1.5" if missing == "image" else "/nowhere/llava-v1.5-7b"
    done = subprocess.run(
        program(*arguments(folder, "/nowhere/a.png" if missing == "image" else image_file)),
        input="",
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if not line.startswith("loading ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and "/nowhere/" in errors[0]


class Terminal:
    """The program on a pseudo-terminal of its own, as a person has it."""

    def __init__(self, command):
        import pty  # POSIX only

        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            # A CI runner may start the tests with SIGINT ignored, and exec would hand that down
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(ROOT)
            os.execv(command[0], command)
        self.text = ""

    def wait_for(self, pattern, start=0):
        """Read until `pattern` stands behind position `start`; return the position after it."""
        self._read_until(lambda: pattern in self.text[start:], f"{pattern!r}")
        return self.text.index(pattern, start) + len(pattern)

    def wait_for_length(self, length):
        """Read until so many characters have come."""
        self._read_until(lambda: len(self.text) >= length, f"{length} characters")

    def _read_until(self, done, wanted, seconds=90):
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, f"no {wanted} in time: {self.text!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:  # Linux: the other side is closed
                    assert done(), f"ended without {wanted}: {self.text!r}"

    def type(self, text):
        os.write(self.fd, text.encode())

    def press_until(self, key, pattern, start):
        """Press a key, again and again if need be, until `pattern` comes; return the position after it.

        Python's line editing overlooks a Ctrl-C that comes just before it waits for the next key.
        """
        until = time.monotonic() + 90
        while pattern not in self.text[start:]:
            assert time.monotonic() < until, f"no {pattern!r} in time: {self.text!r}"
            self.type(key)
            pressed = time.monotonic()
            self._read_until(
                lambda pressed=pressed: pattern in self.text[start:] or time.monotonic() > pressed + 5,
                f"{pattern!r}",
            )
        return self.text.index(pattern, start) + len(pattern)

    def exit_code(self, seconds=30):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        raise AssertionError("the program is still running")

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_ctrl_c_stops_the_answer_and_end_of_input_the_program(checkpoints, image_file):
    args = arguments(checkpoints / "llava-tiny-v1.5", image_file)
    args[args.index("--max-new-tokens") + 1] = "3500"
    terminal = Terminal(program(*args))
    try:
        at = terminal.wait_for("USER: ")
        at = terminal.press_until("\x03", "/exit, an empty line or Ctrl-D ends the program", at)
        at = terminal.wait_for("USER: ", at)
        for _ in range(2):  # the program goes on, also after the second answer
            terminal.type("Tell me a long story\n")
            at = terminal.wait_for("ASSISTANT: ", at)
            terminal.wait_for_length(at + 20)  # some text has come
            terminal.type("\x03")
            at = terminal.wait_for("stopped", at)
            at = terminal.wait_for("USER: ", at)
        terminal.type("\x04")
        terminal.wait_for("bye", at)
        assert terminal.exit_code() == 0
        assert "Traceback" not in terminal.text
    finally:
        terminal.close()
