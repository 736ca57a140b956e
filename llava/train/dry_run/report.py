"""--dry_run: shows what a command would train on, what it would train, and the memory that would take."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.tokenizer import SPACE, LlamaTokenizer
from llava.train.callbacks.unsupervised import CAUSES
from llava.train.data.start_checks import NO_IMAGE
from llava.train.data.streaming import StreamingDataset
from llava.train.data.table import RecordTable
from llava.train.dry_run.memory_estimate import MemoryEstimate, estimate_memory, image_lengths
from llava.train.plan import RunPlan, word_of
from llava.train.records import sample_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

SAMPLES_SHOWN = 2
SAMPLES_COUNTED = 200
GREEN, PLAIN = "\033[32m", "\033[0m"
LEARNED = ("{+", "+}")  # where there are no colours
GIB = 2**30
PARTS = (
    ("lora_", "LoRA adapters"),
    ("mm_projector", "projector"),
    ("vision_tower", "vision tower"),
    ("image_newline", "image newline"),
    ("embed_tokens", "LLM embeddings"),
    ("wte", "LLM embeddings"),
    ("lm_head", "LLM head"),
)


def report_dry_run(trainer: Trainer, *, out: TextIO | None = None) -> None:
    """Print samples, counts, what trains and the memory estimate of a trainer that has not started."""
    out = sys.stdout if out is None else out
    if not trainer.args.should_log:
        return
    colours = out.isatty() and not os.environ.get("NO_COLOR")
    report = DryRun(trainer)
    for line in (
        *report.samples(colours),
        *report.counts(),
        *report.what_trains(),
        *report.memory(),
        "",
        "Nothing was trained, and --output_dir is as it was (--dry_run).",
    ):
        out.write(line + "\n")


class DryRun:
    """The parts of the report, each as lines."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.args = trainer.args
        self.plan: RunPlan = trainer.plan
        self.dataset = trainer.train_dataset
        self.tokenizer = trainer.processing_class
        self.is_stream = isinstance(self.dataset, StreamingDataset)
        self.limit = self.tokenizer.model_max_length

    # ---- the data ----

    def samples(self, colours: bool) -> Iterator[str]:
        """Show two samples, one with an image and one without if there are both."""
        marks = (GREEN, PLAIN) if colours else LEARNED
        shown = "green" if colours else f"{marks[0]}so{marks[1]}"
        for name, sample in self._first_samples():
            batch = self.trainer.data_collator([sample])
            total, images = self._tokens(batch)
            labels = batch["labels"][0]
            learned = int((labels[1:] != IGNORE_INDEX).sum())
            yield f"== {name}: what is trained on is marked {shown}"
            kinds = batch.get("modalities", ["image"] * len(images))
            yield mark_text(batch["input_ids"][0], labels, self.tokenizer, images, marks, kinds)
            counts = Counter(kinds[: len(images)]) or {"image": 0}
            media = " and ".join(f"{count} {kind}(s)" for kind, count in counts.items())
            yield (
                f"-- {total:,} tokens, {sum(images):,} of them for {media}; trained on "
                f"{learned:,}; the limit is {self.limit:,}"
            )
            yield ""

    def _first_samples(self) -> list[tuple[str, Any]]:
        if self.is_stream:
            return [("sample of the stream", one) for one in islice(self.dataset, SAMPLES_SHOWN)]
        with_images = np.asarray(self.dataset.modality_lengths) > 0
        places = [int(np.argmax(with_images == kind)) for kind in (True, False)]
        chosen = sorted(
            {*places, *range(min(SAMPLES_SHOWN, len(self.dataset)))}, key=lambda i: i not in places
        )
        has_names = hasattr(getattr(self.dataset, "list_data_dict", None), "name")
        return [
            (sample_name(self.dataset, i) if has_names else f"sample {i}", self.dataset[i])
            for i in chosen[:SAMPLES_SHOWN]
        ]

    def _tokens(self, batch: dict[str, Any]) -> tuple[int, list[int]]:
        """Count the tokens of a batch of one sample, and those of each image that its text marks."""
        images = image_lengths(self.trainer.model, batch, self.plan) if "images" in batch else []
        marked = int((batch["input_ids"] == IMAGE_TOKEN_INDEX).sum())
        return batch["labels"].shape[1] - marked + sum(images[:marked]), images[:marked]

    def counts(self) -> Iterator[str]:
        """Count tokens and images, of all samples or of some that are evenly spaced."""
        if self.is_stream:
            yield "== Data: a stream; its samples are not counted"
            return
        size = len(self.dataset)
        images = int((np.asarray(self.dataset.modality_lengths) > 0).sum())
        table = getattr(self.dataset, "list_data_dict", None)
        videos = int(table.with_video.sum()) if isinstance(table, RecordTable) else 0
        shown = f"{images - videos:,} with images, " + (f"{videos:,} with a video, " if videos else "")
        yield f"== Data: {size:,} samples, {shown}{size - images:,} of text alone"
        if not images and self.dataset.maker.settings.is_multimodal:
            yield f"   WARNING: {NO_IMAGE}"
        places = np.unique(np.linspace(0, size - 1, SAMPLES_COUNTED).round().astype(int))
        rows = np.array([self._text_tokens(int(place)) for place in places])  # (samples, 2)
        lost = int((rows[:, 1] == 0).sum())
        what = f"{len(rows)} of them, evenly spaced" if len(rows) < size else "all of them"
        yield (
            f"   tokens of text in {what}: {rows[:, 0].mean():,.0f} on average, "
            f"{rows[:, 0].max():,} at most; trained on {rows[:, 1].sum() / max(rows[:, 0].sum(), 1):.0%}"
        )
        if lost:
            yield f"   NOTHING is trained on in {lost} of them: {CAUSES}"
        yield ""

    def _text_tokens(self, place: int) -> tuple[int, int]:
        """Return the tokens of a sample without its images, and how many of them are trained on."""
        sample = self.dataset.encode(place)
        labels = sample["labels"][1 : self.limit]
        images = int((sample["input_ids"] == IMAGE_TOKEN_INDEX).sum())
        return len(sample["input_ids"]) - images, int((labels != IGNORE_INDEX).sum())

    # ---- the model ----

    def what_trains(self) -> Iterator[str]:
        """List parts of the model with their parameters, dtype, learning rate and weight decay."""
        rules = {
            id(param): (f"{group['lr']:g}", f"{group['weight_decay']:g}")
            for group in self.trainer.create_optimizer().param_groups
            for param in group["params"]
        }
        rows: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        for name, param in self.trainer.model.named_parameters():
            rate, decay = rules.get(id(param), ("frozen", "-")) if param.requires_grad else ("frozen", "-")
            row = rows[_part_of(name), str(param.dtype).removeprefix("torch."), rate, decay]
            row[0] += 1
            row[1] += _values(param)
        yield "== What trains"
        line = "   {:<15} {:>8} {:>16}  {:<9} {:>13} {:>12}"
        yield line.format("module", "tensors", "parameters", "dtype", "learning rate", "weight decay")
        for (part, dtype, rate, decay), (tensors, values) in rows.items():
            yield line.format(part, tensors, f"{values:,}", dtype, rate, decay)
        trained = sum(values for (_, _, rate, _), (_, values) in rows.items() if rate != "frozen")
        total = sum(values for _, values in rows.values())
        yield f"   {trained:,} of {total:,} parameters train ({trained / total:.2%})"
        yield ""

    # ---- memory ----

    def memory(self) -> Iterator[str]:
        """Estimate the peak memory of one device, with and without gradient checkpointing."""
        chosen = self.plan.checkpoints_activations
        found = {checkpointing: self.estimate(checkpointing) for checkpointing in (chosen, not chosen)}
        one = found[chosen]
        yield f"== Memory of each device at its fullest moment, estimated: {_size(one.peak)}"
        rows = {
            "weights": one.weights,
            f"optimizer states ({word_of(self.plan.optim)})": one.optimizer,
            "gradients": one.gradients,
            "activations, logits and passing values": max(one.step, one.update) - one.gradients,
        }
        for title, value in rows.items():
            yield f"   {_size(value):>11}  {title}"
        with_or_without = "without" if chosen else "with"
        yield f"   {with_or_without} --gradient_checkpointing it would be {_size(found[not chosen].peak)}"
        yield (
            f"   counted for a batch of the {self.args.train_batch_size} longest samples "
            f"({'the first ones of the stream' if self.is_stream else 'by tokens'}), logits only where "
            "labels are; not counted: what CUDA and NCCL take for themselves (0.5 to 2 GiB) and gaps between "
            "blocks"
        )
        if self.args.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.args.device).total_memory
            verdict = (
                "fits"
                if one.peak < 0.9 * total
                else "will hardly fit"
                if one.peak < total
                else "does not fit"
            )
            yield f"   this device has {_size(total)}: it {verdict}"

    def estimate(self, checkpointing: bool) -> MemoryEstimate:
        """Estimate the memory with gradient checkpointing on or off."""
        stage, offload = _zero(self.plan)
        model = self.trainer.model
        _set_checkpointing(model, checkpointing, self.plan)
        try:
            batch = self.trainer.data_collator(self._longest_samples())
            return estimate_memory(model, batch, self.plan, stage=stage, offload=offload)
        finally:
            _set_checkpointing(model, False, self.plan)

    def _longest_samples(self) -> list[Any]:
        size = self.args.train_batch_size
        if self.is_stream:
            return list(islice(self.dataset, size))
        # an image is a number that is chosen for grouping, not its tokens: each kind has samples to compare
        table = getattr(self.dataset, "list_data_dict", None)
        kinds = (np.asarray(self.dataset.modality_lengths) > 0).astype(int)
        if isinstance(table, RecordTable):
            kinds += table.with_video
        ranked = np.argsort(self.dataset.lengths, kind="stable")[::-1]
        places = [place for kind in range(3) for place in ranked[kinds[ranked] == kind][:size]]
        samples = [self.dataset[int(place)] for place in places]
        if len(set(kinds)) > 1:
            samples.sort(key=lambda one: -self._tokens(self.trainer.data_collator([one]))[0])
        return [samples[place] for place in np.resize(range(len(samples))[:size], size)]


def mark_text(
    ids: torch.Tensor,
    labels: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    images: Sequence[int],
    marks: tuple[str, str],
    kinds: Sequence[str] = (),
) -> str:
    """Write tokens as text with `marks` round what is trained on; images as the number of their tokens.

    kinds: "image" or "video" for each of them, by default images.
    """
    run: list[int] = []
    text, before, lengths, words = "", False, iter(images), iter(kinds)

    def flush() -> None:
        nonlocal text
        shown = tokens_text(run, tokenizer)
        text += f"{marks[0]}{shown}{marks[1]}" if before and run else shown
        run.clear()

    for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
        learned = label != IGNORE_INDEX
        if learned != before or token == IMAGE_TOKEN_INDEX:
            flush()
        before = learned
        if token == IMAGE_TOKEN_INDEX:
            text += f"<{next(words, 'image')}: {next(lengths, 0)} tokens>"
        else:
            run.append(token)
    flush()
    return text


def tokens_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Write tokens as the text they were made of, spaces in front included."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    if not isinstance(tokenizer, LlamaTokenizer):
        return tokenizer.convert_tokens_to_string(pieces) if pieces else ""
    values = b"".join(
        bytes([int(piece[3:5], 16)])
        if len(piece) == 6 and piece.startswith("<0x")
        else piece.replace(SPACE, " ").encode()
        for piece in pieces
    )
    return values.decode(errors="replace")


def _part_of(name: str) -> str:
    return next((part for key, part in PARTS if key in name), "LLM layers")


def _values(param: torch.Tensor) -> int:
    """Return the number of values of a parameter, also where ZeRO or bitsandbytes hold it otherwise."""
    shape = getattr(getattr(param, "quant_state", None), "shape", None)
    return int(np.prod(shape)) if shape is not None else int(getattr(param, "ds_numel", param.numel()))


def _set_checkpointing(model: PreTrainedModel, on: bool, plan: RunPlan) -> None:
    """Switch gradient checkpointing; transformers 5.22 has a new name for it."""
    verb, settings = ("enable", {}) if on else ("disable", {})
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    kwargs = plan.gradient_checkpointing_kwargs
    if kind == "activation":
        kwargs = plan.activation_checkpointing_kwargs
    if on and kwargs:
        settings = {f"{kind}_checkpointing_kwargs": dict(kwargs)}
    getattr(model, f"{kind}_checkpointing_{verb}")(**settings)
    if on:
        model.enable_input_require_grads()


def _zero(plan: RunPlan) -> tuple[int, bool]:
    """Return the stage of ZeRO (0 without, 3 for FSDP, which shards the same), and whether it offloads."""
    config = plan.hf_deepspeed_config
    if config is None:
        return (3 if plan.fsdp else 0), False
    place = config.get_value("zero_optimization.offload_optimizer.device", "none")
    return int(config.get_value("zero_optimization.stage", 0)), place not in (None, "none")


def _size(size: int) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"
