"""What a person at the terminal, and a log file, see of a run; that other libraries are quiet."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded_training import flags, run_train
from transformers import TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.program import quiet_libraries
from llava.train.callbacks import progress
from llava.train.callbacks.progress import Counts, Progress
from llava.train.setup import noise

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_patch_token False --save_strategy no"
CHAT = f"--version v1 --data_path {{data}}/finetune.json {V15}"
ONE_RANK = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, reduction: value)
PART = r"(?:[\d,.e+-]+)"


class Terminal(io.StringIO):
    """A terminal that keeps what was written."""

    def isatty(self) -> bool:
        """Tell that it is one."""
        return True

    @property
    def screen(self) -> list[str]:
        """What stands on it: each line as it was left."""
        return [line.rpartition(progress.CLEAR)[2] for line in self.getvalue().split("\n")]


class Run:
    """A trainer's side of a run on a clock that only steps, evaluations and saving move."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, out: Any, err: Any, first: int = 0, total: int = 10,
        world_size: int = 1, columns: int = 120, in_place: bool = True,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setenv("COLUMNS", str(columns))
        self.now = 100.0
        self.counts = Counts()
        self.shown = Progress(self.counts, in_place=in_place, clock=lambda: self.now)
        self.args: Any = SimpleNamespace(world_size=world_size)
        self.state = TrainerState(global_step=first, max_steps=total, is_world_process_zero=True)
        self.tell("on_train_begin")

    def tell(self, event: str, **more: Any) -> None:
        """Send an event of the trainer."""
        getattr(self.shown, event)(self.args, self.state, TrainerControl(), **more)

    def steps(self, count: int, *, seconds: float = 2.0, images: int = 3, tokens: int = 50) -> None:
        """Take steps of so many seconds over a batch of so many images and tokens."""
        for _ in range(count):
            ids = torch.tensor([[IMAGE_TOKEN_INDEX] * images + [1]])
            self.counts.add({"input_ids": ids}, torch.tensor([tokens - 1, 1]))
            self.now += seconds
            self.state.global_step += 1
            self.tell("on_step_end")

    def log(self, **logs: float) -> None:
        """Log an entry of training, with the counts of all ranks."""
        self.counts.gather(ONE_RANK)
        self.tell("on_log", logs={"loss": 1.25, "learning_rate": 2e-5, "epoch": 0.5, **logs})


# ---- what is counted ----


def test_positions_of_images_count_as_tokens_and_padding_does_not() -> None:
    counts = Counts()
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 5, 0], [IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX, 6, 7]])
    counts.add({"input_ids": ids, "attention_mask": ids != 0}, torch.tensor([18, 34]))
    assert counts.take() == (3, 52)
    assert counts.take() == (0, 0)
    counts.add({"input_ids": ids, "attention_mask": ids != 0}, None)  # a text model: its mask tells
    assert counts.take() == (3, 7)
    two_ranks = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, reduction: 2 * value)
    counts.gather(two_ranks)
    assert counts.gathered == (12, 118)
    counts.gather(two_ranks)
    assert counts.gathered == (0, 0)


@pytest.mark.parametrize("packing", ["False", "True"])
def test_the_tokens_of_a_run_are_those_that_the_llm_reads(
    packing: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    more = f"{CHAT} --packing {packing} --max_steps 1 --per_device_train_batch_size 4 --logging_steps 1"
    run = run_train(flags(checkpoints, training_data, tmp_path / "out", more), order=[0, 1, 2, 3] * 4)
    dataset = run.trainer.train_dataset
    texts = sum(len(dataset[index]["input_ids"]) for index in range(4))
    # record 2 is text alone; an image has 16 positions in place of its token
    assert run.trainer.counts.gathered == (3, texts + 3 * 15)


# ---- a log file or a pipe ----


def test_a_log_has_one_line_per_logging_step(
    checkpoints: Path, training_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"{CHAT} --max_steps 5 --logging_steps 2 --per_device_train_batch_size 2 --eval_split 0.1"
    run_train(
        flags(checkpoints, training_data, tmp_path / "out", f"{more} --eval_strategy steps --eval_steps 4")
    )
    out, err = capsys.readouterr()
    first, second, evaluated, evaluated_at_end, end = out.splitlines()
    numbers = rf"loss {PART} \((text {PART})?(, )?(image {PART})?\) \| rate {PART} \| gradient norm {PART}"
    rates = rf"{PART} images/s \| {PART} tokens/s \| \d+:\d\d:\d\d left"
    assert re.fullmatch(rf"step 2/5 \| epoch {PART} \| {numbers} \| {rates}", first)
    assert re.fullmatch(rf"step 4/5 \| epoch {PART} \| {numbers} \| {rates}", second)
    assert re.fullmatch(rf"step 4/5 \| eval loss {PART} \(.*\) \| in {PART} s", evaluated)
    assert evaluated_at_end.startswith("step 5/5 | eval loss")
    assert re.fullmatch(rf"trained \| 5 steps in \d+:\d\d:\d\d \| mean loss {PART}", end)
    assert "\r" not in out + err and "it/s" not in err


def test_a_text_model_has_no_images_in_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    run = Run(monkeypatch, out=out, err=io.StringIO())
    run.steps(2, images=0)
    run.log()
    assert out.getvalue() == "step 2/10 | epoch 0.5 | loss 1.25 | rate 2e-05 | 25 tokens/s | 0:00:16 left\n"


def test_the_losses_by_modality_are_explained_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="llava")
    run = Run(monkeypatch, out=io.StringIO(), err=io.StringIO())
    run.log()
    assert not caplog.records
    for _ in range(2):
        run.log(loss_text=2.0, loss_image=1.0)
    assert [record.getMessage() for record in caplog.records] == [progress.LOSSES_EXPLAINED]


def test_rates_leave_out_evaluations_and_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    run = Run(monkeypatch, out=out, err=io.StringIO())
    run.steps(1, seconds=60.0)  # compiles
    run.log()
    run.steps(2)
    run.now += 500.0
    run.tell("on_evaluate")
    run.now += 300.0
    run.tell("on_save")
    run.steps(1)
    run.log(loss_image=0.5)
    compiled, others = out.getvalue().splitlines()
    assert "0.05 images/s" in compiled and compiled.endswith("0:09:00 left")
    assert others.endswith("loss 1.25 (image 0.5) | rate 2e-05 | 1.5 images/s | 25 tokens/s | 0:00:12 left")


def test_a_resumed_run_counts_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    run = Run(monkeypatch, out=out, err=io.StringIO(), first=1000, total=3000)
    run.steps(3)
    run.log()
    run.tell("on_log", logs={"train_runtime": 61.5, "train_loss": 0.003, "epoch": 1.0})
    line, end = out.getvalue().splitlines()
    assert line.startswith("step 1,003/3,000 | ") and line.endswith("| 1:06:34 left")
    assert end == "trained | 3 steps in 0:01:02, 1,003 with those before"


def test_other_processes_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), Terminal()
    run = Run(monkeypatch, out=out, err=err)
    written = err.getvalue()
    run.state.is_world_process_zero = False
    run.steps(2)
    run.log()
    run.tell("on_prediction_step", eval_dataloader=[1, 2])
    run.tell("on_log", logs={"eval_loss": 1.0})
    assert out.getvalue() == "" and err.getvalue() == written


# ---- a terminal ----


@pytest.fixture
def console() -> Iterator[Any]:
    """A handler of log messages, whose stream a test sets."""
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_a_terminal_has_one_line_and_room_for_messages(
    monkeypatch: pytest.MonkeyPatch, console: logging.StreamHandler[Any]
) -> None:
    out, err = Terminal(), Terminal()
    console.setStream(err)
    run = Run(monkeypatch, out=out, err=err)
    run.steps(4)
    run.log()
    line = "step 4/10 | loss 1.25 | 0:00:12 left | rate 2e-05 | 1.5 images/s | 25 tokens/s"
    assert err.screen == [line] and out.getvalue() == ""
    logging.getLogger("llava").warning("a message")
    assert err.screen == ["a message", ""]
    run.steps(1)
    assert err.screen == ["a message", line.replace("4/10", "5/10").replace("12 left", "10 left")]
    run.tell("on_prediction_step", eval_dataloader=[1, 2])
    assert err.screen[1:] == ["step 5/10 | evaluating 1/2"]
    run.tell("on_log", logs={"eval_loss": 1.5, "eval_loss_text": 1.5, "eval_runtime": 3.0, "epoch": 1.0})
    assert out.getvalue() == "step 5/10 | eval loss 1.5 (text 1.5) | in 3.0 s\n"
    run.tell("on_train_end")
    assert err.getvalue().endswith("tokens/s\n")
    count = err.getvalue().count(progress.CLEAR)
    logging.getLogger("llava").warning("after the run")
    assert err.getvalue().count(progress.CLEAR) == count


def test_a_failed_run_leaves_the_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    run = Run(monkeypatch, out=Terminal(), err=err)
    run.steps(1)
    run.shown.close()
    assert err.screen[-1] == ""


@pytest.mark.parametrize(
    ("columns", "end"), [(200, "25 tokens/s"), (70, "1.5 images/s"), (40, "0:00:16 left"), (25, "loss 1.25")]
)
def test_a_narrow_terminal_shows_the_first_parts(
    columns: int, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = Terminal()
    run = Run(monkeypatch, out=Terminal(), err=err, columns=columns)
    run.steps(2)
    run.log()
    assert err.screen[0].endswith(end) and len(err.screen[0]) < columns


def test_between_log_entries_the_rates_are_this_process_times_all(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    run = Run(monkeypatch, out=Terminal(), err=err, world_size=8)
    run.steps(2)
    assert err.screen[0].endswith("12 images/s | 200 tokens/s")


@pytest.mark.parametrize(
    ("out", "err", "in_place", "lines_in", "drawn_in"),
    [
        ("file", "terminal", True, "out", "err"),  # python train.py > log
        ("terminal", "file", True, "", "out"),  # 2> errors
        ("file", "file", True, "out", ""),
        ("terminal", "terminal", False, "out", ""),  # --disable_tqdm True
    ],
)
def test_where_lines_and_the_line_in_place_go(
    out: str, err: str, in_place: bool, lines_in: str, drawn_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = {"out": out, "err": err}
    made = {name: Terminal() if kind == "terminal" else io.StringIO() for name, kind in streams.items()}
    run = Run(monkeypatch, **made, in_place=in_place)
    run.steps(1)
    run.log()
    texts = {name: stream.getvalue() for name, stream in made.items()}
    assert [name for name, text in texts.items() if "epoch 0.5" in text] == ([lines_in] if lines_in else [])
    assert [name for name, text in texts.items() if progress.CLEAR in text] == (
        [drawn_in] if drawn_in else []
    )
    run.shown.close()


# ---- other libraries ----


@pytest.fixture
def as_before() -> Iterator[None]:
    """Undo what quiet_unless_verbose changes in a process, before a test and behind it."""
    for name in noise.OWN_LOGGERS:
        logging.getLogger(name).removeFilter(noise._errors_only)
    level = transformers_logging.get_verbosity()
    levels = {name: logging.getLogger(name).level for name in ("huggingface_hub", "bitsandbytes")}
    with warnings.catch_warnings():
        yield
    transformers_logging.set_verbosity(level)
    transformers_logging.enable_progress_bar()
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    for name in noise.OWN_LOGGERS:
        logging.getLogger(name).removeFilter(noise._errors_only)


@pytest.mark.parametrize(
    ("words", "quiet"),
    [
        ([], True),
        (["--verbose_libraries"], False),
        (["--verbose_libraries", "True"], False),
        (["--verbose_libraries=yes"], False),
        (["--verbose_libraries", "False"], True),
        (["--output_dir", "a", "--debug", "underflow_overflow"], True),
    ],
)
def test_libraries_tell_errors_alone_unless_asked(
    words: list[str], quiet: bool, as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    text = io.StringIO()
    # as DeepSpeed makes its logger, after the command line is read
    logger, handler = logging.getLogger("DeepSpeed"), logging.StreamHandler(text)
    transformers_logging.set_verbosity_warning()
    assert noise.quiet_unless_verbose(words) == quiet
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    logger.warning("the accelerator is a CPU")
    logger.error("no memory")
    logger.removeHandler(handler)
    assert text.getvalue() == ("" if quiet else "the accelerator is a CPU\n") + "no memory\n"
    assert (transformers_logging.get_verbosity() == logging.ERROR) == quiet


@pytest.mark.parametrize("by", [quiet_libraries, lambda: noise.quiet_unless_verbose([])])
def test_a_chosen_verbosity_stays(
    by: Callable[[], object], as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    transformers_logging.set_verbosity_info()
    filters = list(warnings.filters)
    by()
    assert transformers_logging.get_verbosity() == logging.INFO
    assert warnings.filters == filters


def test_what_deepspeed_prints_becomes_a_message(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="llava")
    with noise.prints_as_messages(verbose=False):
        sys.stdout.write("built successfully\n")
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (logging.DEBUG, "built successfully")
    ]
    with noise.prints_as_messages(verbose=True):
        sys.stdout.write("built\n")
    assert capsys.readouterr().out == "built\n"


@pytest.mark.slow
def test_a_run_under_deepspeed_prints_its_own_lines_only(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    from launching import COMPILED, ROOT, environment

    more = f"{CHAT} --max_steps 2 --logging_steps 1 --deepspeed {ROOT}/scripts/zero2.json"
    words = [sys.executable, f"{ROOT}/llava/train/train.py"]
    words += flags(checkpoints, training_data, tmp_path / "out", more)
    surroundings = environment(TORCH_EXTENSIONS_DIR=str(COMPILED))
    surroundings.pop("PYTHONWARNINGS")
    done = subprocess.run(
        words, env=surroundings, capture_output=True, text=True, timeout=300, cwd=os.getcwd()
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(" ", 1)[0] for line in done.stdout.splitlines()] == ["step", "step", "trained"]
    assert all(line.startswith(("INFO llava.", "WARNING llava.")) for line in done.stderr.splitlines()), (
        done.stderr
    )
