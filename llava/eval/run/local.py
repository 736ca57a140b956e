"""A model that is loaded in this process, as it is asked by a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

import torch

from llava.conversation import conversation_for, style_of
from llava.eval.run.asking import Outcome
from llava.eval.tasks.base import Ask, JsonValue
from llava.inference.batch import DEFAULT_BATCH_SIZE, READ_AHEAD, Answer, Reader, answer_prompts
from llava.inference.dialog import Dialog, Prompt
from llava.inference.model import LoadedModel
from llava.inference.prompt import new_dialog, with_system
from llava.inference.sampling import SamplingParams
from llava.utils import UserError, check_whole

logger = logging.getLogger(__name__)


class LocalModel:
    """Asks a loaded model many questions at once; see Asker.

    conv_mode: key of conv_templates; why: the sentence that says why this one. weights: their fingerprint,
    where it is known. Answers are those of asking one by one, see generate_batch.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        params: SamplingParams,
        *,
        model_id: str,
        conv_mode: str,
        why: str = "",
        batch_size: int = DEFAULT_BATCH_SIZE,
        weights: str | None = None,
        facts: Mapping[str, JsonValue] | None = None,
    ) -> None:
        check_whole("--batch-size", batch_size, 1)
        self.loaded, self.params, self.batch_size = loaded, params, batch_size
        self._model_id = model_id
        self.conv_mode = conv_mode
        self.template = conversation_for(conv_mode, loaded.tokenizer)
        digest = style_of(self.template.sep_style).digest
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        quantized = getattr(loaded.model, "quantization_method", None)
        self._settings: dict[str, JsonValue] = {
            "weights": weights,
            "template": conv_mode,
            **({"chat_template": digest} if digest else {}),
            "dtype": dtype if quantized is None else f"{dtype}, {quantized}",
            **{name: value for name, value in asdict(params).items() if value not in (None, ())},
        }
        self._facts: dict[str, JsonValue] = {
            "template_reason": why,
            "device": str(loaded.device),
            **(facts or {}),
        }

    @property
    def model_id(self) -> str:
        """What records call the model."""
        return self._model_id

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """Weights, template, dtype and sampling."""
        return self._settings

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """Where the model is from, where it runs, and why it has its template."""
        return {**self._facts, "batch_size": self.batch_size}

    def dialog(self, ask: Ask) -> Dialog:
        """Return a question in the template, its images in front unless the text says where they go."""
        template = self.template if ask.system is None else with_system(self.template, ask.system)
        return new_dialog(
            template, ask.text, ask.sources(), self.loaded.model.config, has_tower=self.loaded.has_tower
        )

    def render(self, ask: Ask) -> str:
        """Return the prompt, with `<image>` for each image; no image is opened."""
        unopened = replace(ask, images=tuple("an image" for _ in ask.images))
        return self.dialog(unopened).conversation.get_prompt()

    def answer(self, asks: Mapping[int, Ask]) -> Iterator[Outcome]:
        """Yield an outcome for each question, those of similar length together.

        A question that cannot be asked (a missing image, too long a prompt) fails alone. When memory does not
        suffice, the batch is halved.
        """
        indices = list(asks)
        window = READ_AHEAD * self.batch_size
        for start in range(0, len(indices), window):
            yield from self._answer_window({index: asks[index] for index in indices[start : start + window]})

    def _answer_window(self, asks: Mapping[int, Ask]) -> Iterator[Outcome]:
        reader: Reader[Ask] = Reader(self.loaded, self.params, self.dialog)
        prompts: dict[int, Prompt] = {}
        for index, ask in asks.items():
            try:
                prompts[index] = self.loaded.read(self.dialog(ask), self.params.stop)
            except UserError as error:
                yield Outcome(index, error=str(error))
        while prompts:
            try:
                for outcome in self._outcomes(reader, prompts):
                    del prompts[outcome.index]
                    yield outcome
            except torch.OutOfMemoryError as error:
                if self.batch_size == 1:
                    index = max(prompts, key=lambda one: prompts[one].n_positions)
                    del prompts[index]
                    yield Outcome(index, error=f"the device has too little memory: {_first_line(error)}")
                    continue
                self.batch_size //= 2
                logger.warning(
                    "the device has too little memory for this batch; continuing with %d at a time",
                    self.batch_size,
                )
                if self.loaded.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _outcomes(self, reader: Reader[Ask], prompts: Mapping[int, Prompt]) -> Iterator[Outcome]:
        """Yield outcomes of prompts; images are opened by threads while the model works."""
        failed: list[Outcome] = []
        found = answer_prompts(
            _Plain(reader),
            dict(prompts),
            self.batch_size,
            ahead=2 * self.batch_size,
            on_failure=lambda index, error: failed.append(Outcome(index, error=str(error))),
        )
        for index, answer in found:
            yield _outcome(index, answer)
            while failed:
                yield failed.pop()
        yield from failed


class _Plain(Reader[Ask]):
    """A reader whose errors do not name the question: the run names it."""

    def __init__(self, reader: Reader[Ask]) -> None:
        super().__init__(reader.loaded, reader.params, reader.as_dialog)

    def _named(self, index: int, error: UserError) -> UserError:
        return error


def _outcome(index: int, answer: Answer) -> Outcome:
    return Outcome(index, answer.text, answer.finish_reason)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
