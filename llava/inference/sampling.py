"""How the next token is chosen: checked sampling settings, and the choice itself."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Below this, logits divided by the temperature overflow float32.
MIN_TEMPERATURE = 1e-5
MAX_TEMPERATURE = 100.0
MAX_PENALTY = 100.0  # and its reciprocal the least
# What transformers' generate uses when neither the caller nor the checkpoint says anything.
DEFAULT_TOP_K = 50
# Other names that settings are known by.
ALIASES = {"max_tokens": "max_new_tokens"}


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one answer, checked when built (UserError names the setting, its value and the range).

    temperature 0 is greedy. None for top_p, top_k, min_p and repetition_penalty means what the checkpoint's
    generation config says; top_k 0, min_p 0 and repetition_penalty 1 are off. The penalty counts the answer,
    not the prompt, as in transformers' generate on embeddings.
    `stop` adds strings to those of the template. With more than one beam nothing is streamed.
    """

    temperature: float = 0.2
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
    max_new_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        temperature = _number("temperature", self.temperature)
        if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise UserError(
                f"temperature is {self.temperature}; expected 0 (greedy) or "
                f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE:g} (0.2 is the default)"
            )
        if self.top_p is not None and not 0 < _number("top_p", self.top_p) <= 1:
            raise UserError(f"top_p is {self.top_p}; expected a number above 0 and at most 1, or none at all")
        if self.top_k is not None:
            _whole("top_k", self.top_k, least=0)
        if self.min_p is not None and not 0 <= _number("min_p", self.min_p) <= 1:
            raise UserError(f"min_p is {self.min_p}; expected a number from 0 to 1, or none at all")
        penalty = self.repetition_penalty
        if (
            penalty is not None
            and not 1 / MAX_PENALTY <= _number("repetition_penalty", penalty) <= MAX_PENALTY
        ):
            raise UserError(
                f"repetition_penalty is {penalty}; expected {1 / MAX_PENALTY} to {MAX_PENALTY:g} (1 is none)"
            )
        _whole("num_beams", self.num_beams, least=1)
        _whole("max_new_tokens", self.max_new_tokens, least=1)
        if self.seed is not None:
            _whole("seed", self.seed, least=0)
        try:
            stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        except TypeError as error:
            raise UserError(f"stop is {self.stop!r}; expected a string or several") from error
        if not all(isinstance(one, str) and one for one in stop):
            raise UserError(f"stop is {self.stop!r}; expected strings that are not empty")
        object.__setattr__(self, "stop", stop)

    @classmethod
    def of(cls, base: SamplingParams | None = None, /, **settings: object) -> SamplingParams:
        """Build from keywords, on top of `base`; `max_tokens` is another name of `max_new_tokens`.

        Raises UserError for an unknown keyword, with the known ones and the nearest.
        """
        known = [one.name for one in fields(cls)]
        given: dict[str, Any] = {}
        for name, value in settings.items():
            field = ALIASES.get(name, name)
            if field not in known:
                near = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(
                    f"{name} is no setting of an answer; {hint}The known ones: {', '.join(known)}"
                )
            if field in given:
                raise UserError(f"{field} was given twice (max_tokens is another name of max_new_tokens)")
            given[field] = value
        return replace(base, **given) if base is not None else cls(**given)

    @property
    def do_sample(self) -> bool:
        """Tell whether tokens are drawn at random (the reference's rule: temperature above 0)."""
        return self.temperature > 0

    def generate_kwargs(self) -> dict[str, Any]:
        """Return the settings as arguments of `model.generate`; None keeps greedy runs free of warnings."""
        kwargs: dict[str, Any] = {
            "do_sample": self.do_sample,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "use_cache": True,
        }
        if self.repetition_penalty is not None:
            kwargs["repetition_penalty"] = self.repetition_penalty
        if not self.do_sample:
            return kwargs | {"temperature": None, "top_p": None, "top_k": None}
        kwargs["temperature"] = self.temperature
        if self.top_p is not None:
            kwargs["top_p"] = self.top_p
        if self.top_k is not None:
            kwargs["top_k"] = self.top_k
        if self.min_p is not None:
            kwargs["min_p"] = self.min_p
        return kwargs


class NextToken:
    """Chooses tokens as transformers' generate would for one row: the same numbers for the same seed.

    Honours temperature, top_k, top_p, min_p and repetition_penalty, all but the first also from the
    checkpoint's generation config. logit_bias: what is added to the scores of some ids before all else.
    A seed drives a generator of its own, so the global random state stays untouched.
    """

    def __init__(
        self,
        params: SamplingParams,
        generation_config: GenerationConfig,
        device: torch.device,
        *,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        self.do_sample = params.do_sample
        self.device = device
        self.generator: torch.Generator | None = None
        if params.seed is not None:
            self.generator = torch.Generator(device).manual_seed(params.seed)
        self.processors = _processors(params, generation_config)
        if logit_bias:
            self.processors.insert(0, AddedBias(logit_bias, device))

    @property
    def is_argmax(self) -> bool:
        """Whether the likeliest token is taken as the model gives it."""
        return not self.do_sample and not self.processors

    def __call__(self, logits: torch.Tensor, new_ids: list[int]) -> int:
        """Choose from logits (1, vocab), given the ids generated so far.

        Raises UserError when the logits hold NaN, which float16 on an unsuited device is known to give.
        """
        scores = _checked(logits).to(device=self.device, dtype=torch.float32)  # (1, vocab)
        history = torch.tensor([new_ids], dtype=torch.long, device=self.device)  # (1, n_new)
        scores = self.processors(history, scores)
        if not self.do_sample:
            return int(scores.argmax(dim=-1))
        probabilities = scores.softmax(dim=-1)
        return int(torch.multinomial(probabilities, num_samples=1, generator=self.generator))


def choose_rows(
    choosers: Sequence[NextToken], logits: torch.Tensor, new_ids: Sequence[list[int]]
) -> list[int]:
    """Choose a token for each row of logits (B, vocab), as its own chooser would alone; see NextToken."""
    some = any(one.is_argmax for one in choosers)
    likeliest = _checked(logits).argmax(dim=-1).tolist() if some else []
    return [
        likeliest[index] if one.is_argmax else one(logits[index : index + 1], ids)
        for index, (one, ids) in enumerate(zip(choosers, new_ids, strict=True))
    ]


class AddedBias(LogitsProcessor):
    """Adds a number to the scores of some token ids, as OpenAI's logit_bias asks."""

    def __init__(self, bias: Mapping[int, float], device: torch.device) -> None:
        self.ids = torch.tensor(list(bias), dtype=torch.long, device=device)
        self.values = torch.tensor(list(bias.values()), dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the changed scores (B, vocab)."""
        scores = scores.clone()
        scores[:, self.ids] += self.values
        return scores


def _checked(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, vocab), or raise UserError when they hold NaN."""
    if logits.isnan().any():
        raise UserError(
            f"the model's output is not a number (NaN) in {str(logits.dtype).removeprefix('torch.')}; "
            "load it in float32 or bfloat16, or check its weights"
        )
    return logits


def _processors(params: SamplingParams, generation_config: GenerationConfig) -> LogitsProcessorList:
    """Return the steps that change the scores, in the order of transformers' generate."""

    def configured(name: str, default: float) -> float:
        value = getattr(generation_config, name, None)
        return default if value is None else value

    steps = LogitsProcessorList()
    penalty = params.repetition_penalty
    penalty = float(configured("repetition_penalty", 1.0) if penalty is None else penalty)
    if penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(penalty))
    if not params.do_sample:
        return steps
    if params.temperature != 1.0:
        steps.append(TemperatureLogitsWarper(float(params.temperature)))
    top_k = configured("top_k", DEFAULT_TOP_K) if params.top_k is None else params.top_k
    if top_k:
        steps.append(TopKLogitsWarper(int(top_k)))
    top_p = configured("top_p", 1.0) if params.top_p is None else params.top_p
    if top_p < 1.0:
        steps.append(TopPLogitsWarper(float(top_p)))
    min_p = configured("min_p", 0.0) if params.min_p is None else params.min_p
    if min_p:
        steps.append(MinPLogitsWarper(float(min_p)))
    return steps


def _number(name: str, value: object) -> float:
    """Return a finite number, or raise UserError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; expected a finite number")
    return float(value)


def _whole(name: str, value: object, *, least: int) -> int:
    """Return a whole number of at least `least` that fits 63 bits, or raise UserError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) < 2**63:
        raise UserError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return int(value)
