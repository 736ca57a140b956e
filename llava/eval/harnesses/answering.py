"""Answers and losses for a harness's requests: batched, in the checkpoint's template, any device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from llava.constants import IGNORE_INDEX
from llava.conversation import conversation_for
from llava.inference.batch import DEFAULT_BATCH_SIZE, generate_batch
from llava.inference.dialog import Dialog
from llava.inference.loading import open_model
from llava.inference.model_inputs import pixels_for
from llava.inference.prompt import encode_prompt, new_dialog, pick_conv_mode
from llava.inference.sampling import SamplingParams
from llava.mm_utils import get_model_name_from_path
from llava.utils import UserError

MAX_NEW_TOKENS = 1024  # what the harness's own model of LLaVA generates at most


class Request(Protocol):
    """A request of lmms-eval. args: text, settings or answer, images of a row, row's number, task, split."""

    @property
    def args(self) -> tuple[Any, ...]:
        """What is asked."""
        ...


class CacheHook(Protocol):
    """Where lmms-eval keeps answers, to resume an evaluation that was cut off."""

    def add_partial(self, kind: str, request: tuple[str, Any], answer: str) -> None:
        """Keep an answer."""


class HarnessModel:
    """The methods that lmms-eval calls; to be joined with its base class, which has `task_dict`.

    pretrained, model_base: the checkpoint. conv_template: key of conv_templates (default: that of the
    checkpoint). device, dtype: the best present. The harness splits nothing: one process asks everything.
    """

    task_dict: dict[str, Any]
    cache_hook: CacheHook

    def __init__(
        self,
        pretrained: str = "liuhaotian/llava-v1.5-7b",
        model_base: str | None = None,
        conv_template: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = DEFAULT_BATCH_SIZE,
        load_8bit: bool = False,
        load_4bit: bool = False,
        **unknown: object,
    ) -> None:
        unknown.pop("max_batch_size", None)  # the harness gives it to every model
        if unknown:
            raise UserError(f"--model_args names {', '.join(unknown)}, which llava_batched does not have")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "llava_batched runs in one process, while WORLD_SIZE is more than 1; start lmms-eval without "
                "accelerate or torchrun (a larger --batch_size takes their place)"
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size is {batch_size!r}; expected a whole number of at least 1")
        self.pretrained = pretrained  # the harness names its cache by it
        super().__init__()
        self.batch_size = int(batch_size)
        name = get_model_name_from_path(pretrained)
        self.loaded = open_model(
            pretrained, model_base, name, device=device, dtype=dtype, load_8bit=load_8bit, load_4bit=load_4bit
        )
        chosen, _ = pick_conv_mode(conv_template, name, self.loaded.model.config)
        self.template = conversation_for(chosen, self.loaded.tokenizer)

    # ---- what the harness calls ----

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Return the answers, in the requests' order; those of equal settings run together."""
        dialogs, groups = [], dict[SamplingParams, list[int]]()
        for index, request in enumerate(requests):
            text, settings, visuals, row, task, split = request.args
            dialogs.append(self.dialog(text, self.images(visuals, row, task, split)))
            groups.setdefault(params_of(settings), []).append(index)
        answers = [""] * len(dialogs)
        for params, indices in groups.items():
            asked = [dialogs[index] for index in indices]
            found = generate_batch(self.loaded, asked, params, batch_size=self.batch_size)
            for index, answer in zip(indices, found, strict=True):
                answers[index] = answer.text
                text, settings = requests[index].args[:2]
                self.cache_hook.add_partial("generate_until", (text, settings), answer.text)
        return answers

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Return the loss of each given answer (the harness takes the least), and whether greedy says it."""
        return [self._loss(request) for request in requests]

    def generate_until_multi_round(self, requests: Sequence[Request]) -> list[str]:
        """Refuse: the harness's tasks of several rounds have a protocol of their own."""
        raise UserError("llava_batched answers tasks of one round only; omit those of several rounds")

    # ---- its parts ----

    def images(
        self, visuals: Callable[[Any], Sequence[Any] | None], row: int, task: str, split: str
    ) -> list[Any]:
        """Return the images of a row of a task; they may come in lists."""
        found = visuals(self.task_dict[task][split][row])
        flat = [one for part in found or () for one in (part if isinstance(part, list) else [part])]
        return [one for one in flat if one is not None]

    def dialog(self, text: str, images: Sequence[Any]) -> Dialog:
        """Return a question in the template, its images in front unless the text says where they go."""
        config = self.loaded.model.config
        return new_dialog(self.template, text, list(images), config, has_tower=self.loaded.has_tower)

    def _loss(self, request: Request) -> tuple[float, bool]:
        text, target, visuals, row, task, split = request.args
        continuation = target if isinstance(target, str) else target(self.task_dict[task][split][row])
        dialog = self.dialog(text, self.images(visuals, row, task, split))
        prompt = self.loaded.open(self.loaded.read(dialog))
        conversation = dialog.conversation.copy()
        conversation.messages[-1] = [conversation.roles[1], str(continuation)]
        ids = encode_prompt(self.loaded.tokenizer, conversation, len(prompt.images))
        model, processor, device = self.loaded.model, self.loaded.image_processor, self.loaded.device
        pixels = pixels_for(model, processor, prompt.images) if prompt.images else None
        input_ids = torch.tensor([ids], device=device)  # (1, n)
        labels = input_ids.clone()
        labels[0, : len(prompt.ids)] = IGNORE_INDEX
        with torch.inference_mode():
            outputs = model(
                input_ids=input_ids,
                labels=labels,
                images=pixels,
                image_sizes=[one.size for one in prompt.images],
                use_cache=False,
            )
        n_answer = len(ids) - len(prompt.ids)
        # the last position predicts what would follow the answer
        greedy = outputs["logits"][0, -n_answer - 1 : -1].argmax(dim=-1)  # (n_answer,)
        return float(outputs["loss"]), bool((greedy == input_ids[0, len(prompt.ids) :]).all())


def params_of(settings: Mapping[str, Any]) -> SamplingParams:
    """Return the settings of a request; greedy unless it says otherwise."""
    until = settings.get("until") or ()
    samples = settings.get("do_sample", True) and settings.get("temperature")
    return SamplingParams(
        temperature=float(settings["temperature"]) if samples else 0.0,
        top_p=settings.get("top_p"),
        num_beams=settings.get("num_beams") or 1,
        max_new_tokens=settings.get("max_new_tokens") or MAX_NEW_TOKENS,
        stop=(until,) if isinstance(until, str) else tuple(until),
    )
