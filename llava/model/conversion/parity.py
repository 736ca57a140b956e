"""The proof of a conversion: dialogs with an image or a video through LLaVA's model and transformers'."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig

# at the top of transformers 5.17 it is a stand-in that asks for torchvision
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VIDEO_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, conversation_for, encode_pieces, style_of
from llava.conversation.pieces import adds_start
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.checkpoints import files
from llava.model.checkpoints.errors import CheckpointError, first_line
from llava.model.checkpoints.loading import from_pretrained
from llava.model.conversion.config import ARCHITECTURES, ONEVISION, WITH_VIDEO
from llava.protocols import Tokenizer
from llava.utils import UserError

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of logits in float32
_ROUNDINGS = 16  # roundings of the largest logit that are allowed in a smaller dtype
QUESTIONS = ("What is shown in this picture?", "And what is to the left of it?")
ANSWER = "Soft patches of colour,  without an edge."
# spaces, line breaks, special tokens, bytes: where tokenizers come apart
TEXTS = (
    "Hello",
    " leading",
    "two  spaces",
    "trailing ",
    "\n",
    "a\n\n  b\t c",
    "",
    " ",
    "1234567890",
    "naïve café",
    "\u6f22\u5b57 \ud55c\uad6d\uc5b4 \U0001f642",
    "def f(x):\n    return x  # a",
    "</s>USER: a",
    "</s> USER: a",
    "x</s>y",
    "<s>x",
    "<unk>",
    "a<image>b",
    "a <image> b",
    "<image>",
    "<image>\nWhat?",
    "<image><image>\nWhat?",
    "USER: <image>\nWhat? ASSISTANT:",
    "Hi</s>USER: <image>\nA  b ASSISTANT:",
    "[INST] a [/INST] b </s>[INST] c",
    "<|im_start|>user\n<image>\nx<|im_end|>",
)


@dataclass(frozen=True)
class Settings:
    """How the comparison is run: dtype and device of both models."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"


FULL = Settings()


@dataclass(frozen=True)
class Report:
    """What the comparison found; `passed` is the verdict."""

    dtype: str
    prompt_equal: bool
    ids: int
    ids_equal: bool
    texts: int
    texts_different: tuple[str, ...]
    pixel_difference: float
    logit_difference: float
    largest_logit: float
    tolerance: float
    same_choices: bool
    texts_must_agree: bool
    video_difference: float | None = None  # of logits; None for a class that takes no videos

    @property
    def passed(self) -> bool:
        """Whether the two models are one: prompts, ids, and logits within the tolerance."""
        texts = not (self.texts_must_agree and self.texts_different)
        differences = max(self.logit_difference, self.video_difference or 0)
        return self.prompt_equal and self.ids_equal and texts and differences <= self.tolerance

    def content(self) -> dict[str, Any]:
        """Return the report as content of a JSON file."""
        return {**asdict(self), "passed": self.passed}

    def lines(self) -> list[str]:
        """Return the report as lines for a terminal."""

        def mark(good: bool) -> str:
            return "equal" if good else "DIFFERENT"

        video = []
        if self.video_difference is not None:
            video = [
                f"  video        max |difference| {self.video_difference:.2e} of the logits, same frames"
            ]
        different = ", ".join(repr(text) for text in self.texts_different[:4])
        return [
            f"parity in {self.dtype}: {'passed' if self.passed else 'FAILED'}",
            f"  prompt       {mark(self.prompt_equal)} (chat template against Conversation.get_prompt)",
            f"  ids          {mark(self.ids_equal)} ({self.ids} tokens, image tokens included)",
            f"  other texts  {self.texts - len(self.texts_different)} of {self.texts} with equal ids"
            + (f"; different: {different}" if different else ""),
            f"  pixels       max |difference| {self.pixel_difference:.2e}",
            f"  logits       max |difference| {self.logit_difference:.2e} (largest logit "
            f"{self.largest_logit:.1f}, "
            f"allowed {self.tolerance:.0e})",
            *video,
            f"  next tokens  {mark(self.same_choices)} at every position",
        ]


class ParityError(Exception):
    """The two models are not the same; `report` says in what."""

    def __init__(self, report: Report) -> None:
        super().__init__("\n".join(report.lines()))
        self.report = report


def image_of_test(*, square: bool) -> Image.Image:
    """Return an image of soft random colours, square or wider than high, the same every time."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (9, 13, 3), generator=generator, dtype=torch.uint8)
    image = Image.frombytes("RGB", (13, 9), bytes(small.flatten().tolist()))
    return image.resize((331 if square else 500, 331), Image.Resampling.BICUBIC)


@dataclass
class _Seen:
    """What one side made of the dialog."""

    prompt: str
    ids: list[int]
    texts: list[list[int]]  # ids of TEXTS
    pixels: torch.Tensor
    logits: torch.Tensor  # (tokens, vocabulary)
    image_id: int
    video_logits: torch.Tensor | None = None
    video_pixels: torch.Tensor | None = None  # (frames, 3, H, W)


def compare(
    llava: Callable[[], tuple[Any, Any, Any]],
    hf_path: str,
    conversation: Conversation,
    *,
    settings: Settings,
    own_template: bool,
    start_end: bool = False,
    square: bool = False,
    rows: int | None = None,
) -> Report:
    """Ask both models about an image and, where both take one, a video; compare what goes in and comes out.

    llava: loads (tokenizer, model, image processor). own_template: the folder's chat template is made from
    `conversation` and both tokenizers from one, so that prompts and all texts must agree; else the folder's
    own template gives the prompt. square: with a square image, where the two process others in different
    ways.
    """
    turns = (
        3 if own_template else 1
    )  # other templates may not know several turns, or end them in their own way
    dialog = _dialog(conversation, turns, start_end=start_end)
    image = image_of_test(square=square)
    given = "" if own_template else dialog.get_prompt()
    with contextlib.nullcontext() if own_template else _explained(hf_path):
        theirs = _ask_hf(hf_path, given, turns, image, settings)
    ours = _ask_llava(llava, dialog if own_template else theirs.prompt, image, theirs, settings)
    rows = min(rows or ours.logits.shape[-1], ours.logits.shape[-1], theirs.logits.shape[-1])
    difference = _difference(ours.logits, theirs.logits, rows)
    same = difference < float("inf") and torch.equal(
        ours.logits[:, :rows].argmax(-1), theirs.logits.argmax(-1)
    )
    video = None
    if ours.video_logits is not None and theirs.video_logits is not None:
        video = _difference(ours.video_logits, theirs.video_logits, rows)
    largest = float(ours.logits.abs().max())
    exact = settings.dtype == torch.float32
    pixels = ours.pixels.shape == theirs.pixels.shape
    return Report(
        dtype=str(settings.dtype).removeprefix("torch."),
        prompt_equal=ours.prompt == theirs.prompt,
        ids=len(theirs.ids),
        ids_equal=ours.ids == theirs.ids,
        texts=len(TEXTS),
        texts_different=tuple(
            text for text, one, other in zip(TEXTS, ours.texts, theirs.texts, strict=True) if one != other
        ),
        pixel_difference=float((ours.pixels - theirs.pixels).abs().max()) if pixels else float("inf"),
        logit_difference=difference,
        largest_logit=largest,
        tolerance=TOLERANCE if exact else _ROUNDINGS * torch.finfo(settings.dtype).eps * largest,
        same_choices=same,
        texts_must_agree=own_template,
        video_difference=video,
    )


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what transformers raises on a folder whose files do not fit each other into a CheckpointError."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each library raises its own kind, down to bare Exception
        raise CheckpointError(
            f"transformers cannot run {path} ({type(error).__name__}: {first_line(error)}); compare its "
            "config.json and the files of its tokenizer and processor with the original's, or copy them "
            "again."
        ) from error


def _difference(ours: torch.Tensor, theirs: torch.Tensor, rows: int) -> float:
    """Return the largest difference of logits (tokens, vocabulary); inf where there are not equally many."""
    if ours.shape[0] != theirs.shape[0]:
        return float("inf")
    return float((ours[:, :rows] - theirs[:, :rows]).abs().max())


def _dialog(conversation: Conversation, turns: int, *, start_end: bool) -> Conversation:
    dialog = conversation.copy()
    image = DEFAULT_IMAGE_TOKEN
    image = f"{DEFAULT_IM_START_TOKEN}{image}{DEFAULT_IM_END_TOKEN}" if start_end else image
    texts = (f"{image}\n{QUESTIONS[0]}", ANSWER, QUESTIONS[1])
    for index, text in enumerate((*texts[:turns], None)):
        dialog.append_message(dialog.roles[index % 2], text)
    return dialog


def _encoded(prompt: Conversation | str, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """Return a prompt and its ids as LLaVA has them while asking, IMAGE_TOKEN_INDEX for the image.

    The text is without a start token that the tokenizer puts in front itself, as exported templates are.
    """
    if isinstance(prompt, str):
        return prompt, list(tokenizer_image_token(prompt, tokenizer))
    dialog = conversation_for(prompt, tokenizer)
    style, text = style_of(dialog.sep_style), dialog.get_prompt()
    if not style.in_pieces:
        return text, list(tokenizer_image_token(text, tokenizer))
    ids = encode_pieces(dialog.pieces(), tokenizer, start_token=style.start_token).ids
    return text.removeprefix((adds_start(tokenizer) and tokenizer.bos_token) or ""), ids


def _messages(turns: int) -> list[dict[str, Any]]:
    first = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    texts = [{"type": "text", "text": text} for text in (ANSWER, QUESTIONS[1])]
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
    messages += [
        {"role": role, "content": [text]} for role, text in zip(("assistant", "user"), texts, strict=True)
    ]
    return messages[:turns]


def _ask_llava(
    load: Callable[[], tuple[Any, Any, Any]],
    prompt: Conversation | str,
    image: Image.Image,
    theirs: _Seen,
    settings: Settings,
) -> _Seen:
    """Ask LLaVA's model; of `theirs` the id of the image token and the frames of the video are taken."""
    image_id = theirs.image_id
    logger.info("parity: running LLaVA's model in %s on %s", settings.dtype, settings.device)
    tokenizer, model, image_processor = load()
    pixels = process_images([image], image_processor, model.config)
    text, ids = _encoded(prompt, tokenizer)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids], device=settings.device),
            images=torch.as_tensor(pixels).to(device=settings.device, dtype=settings.dtype),
            image_sizes=[image.size],
            use_cache=False,
        ).logits[0]
        video = None
        if theirs.video_pixels is not None:
            frames = theirs.video_pixels.to(device=settings.device, dtype=settings.dtype)
            ids_on_device = torch.tensor([ids], device=settings.device)
            told = {"image_sizes": [image.size], "modalities": ["video"], "use_cache": False}
            video = model(input_ids=ids_on_device, images=[frames], **told).logits[0].float().cpu()
    features = logits.shape[0] - len(ids) + 1
    expanded = [one for i in ids for one in ([image_id] * features if i == IMAGE_TOKEN_INDEX else [i])]
    texts = [list(tokenizer_image_token(text, tokenizer, image_id)) for text in TEXTS]
    del model
    gc.collect()
    return _Seen(text, expanded, texts, pixels[0], logits.float().cpu(), image_id, video)


def _ask_hf(path: str, prompt: str, turns: int, image: Image.Image, settings: Settings) -> _Seen:
    logger.info("parity: running transformers' model in %s on %s", settings.dtype, settings.device)
    config = AutoConfig.from_pretrained(path)
    if config.model_type in WITH_VIDEO:
        return _ask_video_model(path, config, prompt, _messages(turns), image, settings)
    processor = hf_processor(path, config)
    rendered = prompt
    if processor.chat_template is not None:
        rendered = processor.apply_chat_template(_messages(turns), add_generation_prompt=True)
    inputs = processor(images=[image], text=[rendered], return_tensors="pt")
    model = load_hf(path, config, settings)
    ids = inputs["input_ids"][0].tolist()
    pixels = inputs["pixel_values"][0]
    inputs = inputs.to(settings.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(settings.dtype)
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0]
    texts = [processor.tokenizer(text).input_ids for text in TEXTS]
    del model
    gc.collect()
    return _Seen(rendered, ids, texts, pixels, logits.float().cpu(), config.image_token_index)


def _ask_video_model(
    path: str,
    config: PreTrainedConfig,
    prompt: str,
    messages: list[dict[str, Any]],
    image: Image.Image,
    settings: Settings,
) -> _Seen:
    """Ask one of transformers' models that takes videos, about an image and about a video.

    Its processor needs torchvision, so its parts are used one by one: tokenizer, image processor, and the
    lengths of the model's own features. The frames of the video are made by the image processor.
    """
    tokenizer, image_processor = _parts_of_processor(path)
    model = load_hf(path, config, settings)
    rendered, agrees = prompt, True
    if tokenizer.chat_template is not None:
        options = {"tokenize": False, "add_generation_prompt": True}
        rendered = tokenizer.apply_chat_template(messages, **options)
        first = [{"type": "video"}, *messages[0]["content"][1:]]
        video = tokenizer.apply_chat_template([{**messages[0], "content": first}, *messages[1:]], **options)
        agrees = video == rendered.replace(DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN)
    inputs = image_processor(images=[image], return_tensors="pt")
    pixels = inputs["pixel_values"].to(settings.device, settings.dtype)
    sizes = inputs["image_sizes"].to(settings.device)
    seen = [image_of_test(square=square) for square in (True, False, True)]
    frames = image_processor(images=seen, return_tensors="pt")["pixel_values"][:, 0]  # the overviews

    def logits(token: str, count: int, **media: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        text = rendered.replace(DEFAULT_IMAGE_TOKEN, token * count)
        ids = tokenizer(text).input_ids
        found = model(input_ids=torch.tensor([ids], device=settings.device), use_cache=False, **media).logits
        return ids, found[0].float().cpu()

    with torch.no_grad():
        features = model.model.get_image_features(pixels, image_sizes=sizes).pooler_output
        ids, of_image = logits(DEFAULT_IMAGE_TOKEN, len(features[0]), pixel_values=pixels, image_sizes=sizes)
        video_values = frames[None].to(settings.device, settings.dtype)
        length = _video_length(config, len(frames))
        _, of_video = logits(DEFAULT_VIDEO_TOKEN, length, pixel_values_videos=video_values)
    texts = [tokenizer(text).input_ids for text in TEXTS]
    shown = rendered if agrees else f"{rendered} (and another one with a video)"
    return _Seen(
        shown, ids, texts, inputs["pixel_values"][0], of_image, config.image_token_index, of_video, frames
    )


def _parts_of_processor(path: str) -> tuple[Any, Any]:
    """Load the tokenizer and the image processor of a llava-hf folder."""
    return AutoTokenizer.from_pretrained(path), AutoImageProcessor.from_pretrained(path, backend="pil")


def _video_length(config: PreTrainedConfig, frames: int) -> int:
    """Return how many tokens transformers' processor writes for a video."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    if config.model_type == ONEVISION:
        return frames * math.ceil(side / 2) ** 2 + 1
    return frames * (side // config.spatial_pool_stride) ** 2


def hf_processor(path: str, config: PreTrainedConfig) -> Any:
    """Load the processor of a llava-hf folder, on PIL: torchvision resizes images a little differently.

    Folders of 2023 and 2024 do not say how many tokens an image has; that comes from the model's config then.
    """
    processor = AutoProcessor.from_pretrained(path)
    processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = 1
    return processor


def load_hf(path: str, config: PreTrainedConfig, settings: Settings) -> Any:
    """Load transformers' model of a llava-hf folder, every weight accounted for."""
    model_class = getattr(transformers, ARCHITECTURES[config.model_type])
    model, info = from_pretrained(model_class, path, dtype=settings.dtype)
    lost = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    lost = [name for name in lost if not files.is_recomputed(name)]
    if lost:
        raise CheckpointError(f"transformers did not find all weights of {path} in their places: {lost[:4]}.")
    return model.to(settings.device).eval()
