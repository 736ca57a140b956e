"""How a run gets on: one line updated in place on a terminal, one line per logging step in a log or pipe."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sized
from typing import TYPE_CHECKING, Any, TextIO

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils.logging import disable_progress_bar

from llava.constants import IMAGE_TOKEN_INDEX

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

RECENT = 50  # steps from whose mean the time that is left follows
CLEAR = "\r\x1b[2K"  # to the start of a terminal's line, and empty it
# What a log entry holds besides losses; the first names stand in a line of training, the others do not.
SHOWN = ("learning_rate", "grad_norm")
_UNSAID = ("total_flos", "epoch", *SHOWN)
LOSSES_EXPLAINED = (
    "loss is the mean over micro-batches; in brackets the means over all learned tokens since the line "
    "before, of samples without and with images. They weigh long answers more (docs/training.md, The log)"
)


class Counts:
    """Images and tokens that were read: of this process at once, of all processes at each log entry."""

    def __init__(self) -> None:
        self._new: torch.Tensor | None = None  # (2,): images, tokens since `take`; on the device
        self._since = torch.zeros(2, dtype=torch.float64)  # of this process since `gather`
        self.gathered = (0.0, 0.0)  # images, tokens of all processes, between the last two log entries

    def add(self, inputs: Mapping[str, Any], tokens_read: torch.Tensor | None) -> None:
        """Add a batch. tokens_read: positions of each sample, images among them; None: its mask tells."""
        ids = inputs["input_ids"]  # (B, T)
        mask = inputs.get("attention_mask")
        tokens = (torch.ones_like(ids) if mask is None else mask) if tokens_read is None else tokens_read
        counted = torch.stack([(ids == IMAGE_TOKEN_INDEX).sum(), tokens.sum().to(ids.device)])
        self._new = counted if self._new is None else self._new + counted

    def take(self) -> tuple[float, float]:
        """Return images and tokens of this process since the last call."""
        if self._new is None:
            return 0.0, 0.0
        new, self._new = self._new.to("cpu", torch.float64), None
        self._since += new
        images, tokens = new.tolist()
        return images, tokens

    def gather(self, accelerator: Accelerator) -> None:
        """Sum what all processes have read since the last call into `gathered`; all of them call this."""
        self.take()
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
        images, tokens = accelerator.reduce(
            self._since.to(accelerator.device, dtype), reduction="sum"
        ).tolist()
        self.gathered = images, tokens
        self._since = torch.zeros(2, dtype=torch.float64)


class Progress(TrainerCallback):
    """Shows a run on the first process; takes the place of transformers' bars and printed dicts.

    On a terminal (stderr, else stdout) one line is updated in place; where stdout is a file or a pipe, each
    log entry is a line in it. Evaluations and the end of the run are lines in both. Times and rates count
    steps and the loading of their data, not evaluation and saving.
    """

    def __init__(
        self, counts: Counts, *, in_place: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """in_place: whether a terminal shows the line that is updated; else lines alone, as in a log."""
        terminal = next((one for one in (sys.stderr, sys.stdout) if one.isatty()), None)
        self._line = _Line(terminal) if terminal is not None and in_place else None
        # lines and the line in place tell the same: never both on one terminal
        self._lines = self._line is None or not sys.stdout.isatty()
        self._counts, self._clock = counts, clock
        self._mark = 0.0  # when the present step began
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=RECENT)  # seconds, images, tokens
        self._done = 0  # steps of this run
        self._since_log = 0.0  # seconds
        self._entry: dict[str, float] = {}  # the last of training
        self._batches = 0  # evaluated
        self._explained = self._has_images = self._trains = False

    # ---- events of the trainer ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the clock."""
        self._trains, self._mark = True, self._clock()
        self._steps.clear()
        self._done, self._since_log = 0, 0.0
        if self._shows(state) and self._line is not None:
            disable_progress_bar()  # bars of saving would stand in the line
            self._line.open()
            self._line.draw([_step(state), "first step"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Count a step, and bring the line up to date."""
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        self._since_log += seconds
        if self._done == 1:
            self._steps.clear()  # the first step also compiles, or passes over what was read before
        self._done += 1
        if self._shows(state):
            self._steps.append((seconds, *self._counts.take()))
            self._draw(args, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Write a log entry as a line."""
        seconds, self._since_log = self._since_log, 0.0 if "loss" in (logs or {}) else self._since_log
        if not logs or not self._shows(state):
            return
        if "loss" in logs:
            self._entry = dict(logs)
            self._explain(logs)
            if self._lines:
                images, tokens = self._counts.gathered
                rates = _rates(images, tokens, seconds, images_too=self._sees_images(images))
                where = [_step(state)]
                if "epoch" in logs:
                    where.append(f"epoch {logs['epoch']:.3g}")
                self._say([*where, *_losses(logs), *_settings(logs, SHOWN), *rates, *self._left(state)])
        elif "train_runtime" in logs:
            self._say(["trained", *_ending(logs, state, self._done)])
            return
        else:
            self._say([_step(state), *_evaluated(logs)])
        self._draw(args, state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Show how far an evaluation is."""
        if self._line is None or not self._shows(state):
            return
        self._batches += 1
        loader = kwargs.get("eval_dataloader")
        total = f"/{len(loader):,}" if isinstance(loader, Sized) and has_length(loader) else ""
        self._line.open()
        self._line.draw([_step(state), f"evaluating {self._batches:,}{total}"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Leave the evaluation out of the time of steps."""
        self._mark, self._batches = self._clock(), 0
        if not self._trains:
            self.close()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Leave the saving of a checkpoint out of the time of steps."""
        self._mark = self._clock()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Give the terminal back."""
        self._trains = False
        self.close()

    def close(self) -> None:
        """End the line in place, so that what comes next has a line of its own."""
        if self._line is not None:
            self._line.close()

    # ---- what is shown ----

    @staticmethod
    def _shows(state: TrainerState) -> bool:
        return state.is_world_process_zero

    def _sees_images(self, images: float) -> bool:
        self._has_images = self._has_images or images > 0
        return self._has_images

    def _draw(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._line is None or not self._trains:
            return
        steps = self._steps or [(0.0, 0.0, 0.0)]
        seconds, images, tokens = (sum(column) for column in zip(*steps, strict=True))
        # of this process, times their number: the others are asked at log entries only
        ranks = max(args.world_size, 1)
        rates = _rates(images * ranks, tokens * ranks, seconds, images_too=self._sees_images(images))
        entry = self._entry
        parts = [_step(state)]
        if "loss" in entry:
            parts.append(f"loss {_short(entry['loss'])}")
        self._line.draw([*parts, *self._left(state), *_settings(entry, SHOWN[:1]), *rates])

    def _left(self, state: TrainerState) -> list[str]:
        """Say how long the steps to come take, if they are like those before."""
        if not self._steps:
            return []
        each = sum(seconds for seconds, *_ in self._steps) / len(self._steps)
        return [f"{_duration(each * max(state.max_steps - state.global_step, 0))} left"]

    def _say(self, parts: list[str]) -> None:
        if self._line is not None:
            self._line.clear()
        sys.stdout.write(f"{' | '.join(parts)}\n")
        sys.stdout.flush()

    def _explain(self, logs: Mapping[str, Any]) -> None:
        if not self._explained and any(name in logs for name in ("loss_text", "loss_image")):
            self._explained = True
            logger.info("%s", LOSSES_EXPLAINED)


# ---- words ----


def _step(state: TrainerState) -> str:
    return f"step {state.global_step:,}/{state.max_steps:,}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    """Write a time as hours, minutes and seconds."""
    whole = math.ceil(max(seconds, 0))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _rates(images: float, tokens: float, seconds: float, *, images_too: bool) -> list[str]:
    if not seconds or not tokens:
        return []
    shown = [f"{_rate(images / seconds)} images/s"] if images_too else []
    return [*shown, f"{_rate(tokens / seconds)} tokens/s"]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _losses(logs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Write the loss, those of the modalities behind it in brackets."""
    kinds = {kind: logs.get(f"{prefix}loss_{kind}") for kind in ("text", "image")}
    apart = ", ".join(f"{kind} {_short(value)}" for kind, value in kinds.items() if value is not None)
    words = f"{prefix.replace('_', ' ')}loss {_short(logs[f'{prefix}loss'])}"
    return [f"{words} ({apart})" if apart else words]


def _settings(logs: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    words = {"learning_rate": "rate", "grad_norm": "gradient norm"}
    return [f"{words[name]} {_short(logs[name])}" for name in names if name in logs]


def _ending(logs: Mapping[str, Any], state: TrainerState, done: int) -> list[str]:
    """Write what the trainer tells at the end of a run."""
    steps = f"{done:,} steps in {_duration(logs['train_runtime'])}"
    if done < state.global_step:  # the trainer divides the losses of these steps by the number of all
        return [f"{steps}, {state.global_step:,} with those before"]
    return [steps, f"mean loss {_short(logs['train_loss'])}"] if "train_loss" in logs else [steps]


def _evaluated(logs: Mapping[str, Any]) -> list[str]:
    """Write an evaluation, or an entry of somebody else's, name by name."""
    parts: list[str] = []
    prefix = next((name[: -len("loss")] for name in logs if name.endswith("_loss")), None)
    told: set[str] = set()
    if prefix is not None:
        parts += _losses(logs, prefix)
        told = {f"{prefix}loss", f"{prefix}loss_text", f"{prefix}loss_image"}
        told |= {f"{prefix}samples_per_second", f"{prefix}steps_per_second", f"{prefix}runtime"}
        if f"{prefix}runtime" in logs:
            parts.append(f"in {logs[f'{prefix}runtime']:,.1f} s")
    told.update(_UNSAID)
    return [*parts, *(f"{name} {_short(value)}" for name, value in logs.items() if name not in told)]


# ---- the terminal ----


class _Line(logging.Filter):
    """The last line of a terminal, drawn again at each change.

    As a filter of the handlers that write to a terminal it makes room for their messages.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._text = ""
        self._open = False

    def open(self) -> None:
        """Begin to make room for log messages."""
        if not self._open:
            self._open = True
            for handler in self._handlers():
                handler.addFilter(self)

    def draw(self, parts: list[str]) -> None:
        """Show as many parts, from the first, as the terminal is wide."""
        width = shutil.get_terminal_size().columns - 1
        text = parts[0]
        for part in parts[1:]:
            if len(text) + 3 + len(part) > width:
                break
            text += f" | {part}"
        self._text = text[:width]
        self._stream.write(f"{CLEAR}{self._text}")
        self._stream.flush()

    def clear(self) -> None:
        """Empty the line for something else that is written."""
        if self._text:
            self._text = ""
            self._stream.write(CLEAR)
            self._stream.flush()

    def close(self) -> None:
        """Leave the last state of the line standing, and go to the next one."""
        if self._text:
            self._text = ""
            self._stream.write("\n")
            self._stream.flush()
        for handler in self._handlers():
            handler.removeFilter(self)
        self._open = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every message pass, on an empty line."""
        self.clear()
        return True

    @staticmethod
    def _handlers() -> list[logging.Handler]:
        return [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
