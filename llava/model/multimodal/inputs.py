"""What `generate` may be given: ids of one prompt or of many, images as Pillow objects or as pixel values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.images import as_image
from llava.model.multimodal.media import process_media
from llava.protocols import ImageProcessor
from llava.utils import UserError
from llava.video import Video

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Sizes = Sequence[Sequence[int]]
HOW_TO_TOKENIZE = 'tokenizer_image_token(prompt, tokenizer, return_tensors="pt")'


# ---- token ids ----


def checked_ids(inputs: object, vocab_size: int) -> torch.Tensor:
    """Return token ids as (B, T), from (T,), (B, T) or lists. Raises UserError for what is none."""
    if inputs is None:
        raise UserError("generate() got no token ids; pass them as inputs (B, T).")
    if isinstance(inputs, (list, tuple)):
        inputs = _tensor_of(inputs)
    if not isinstance(inputs, torch.Tensor):
        hint = "pass its input_ids" if isinstance(inputs, Mapping) else f"make them with {HOW_TO_TOKENIZE}"
        raise UserError(f"generate() got a {type(inputs).__name__} as inputs; expected token ids, {hint}.")
    if inputs.is_floating_point() or inputs.is_complex() or inputs.dtype == torch.bool:
        kind = str(inputs.dtype).removeprefix("torch.")
        raise UserError(f"generate() got inputs of dtype {kind}; expected token ids, whole numbers.")
    ids = inputs[None] if inputs.ndim == 1 else inputs
    if ids.ndim != 2 or not ids.numel():
        raise UserError(
            f"generate() got inputs of shape {tuple(inputs.shape)}; expected token ids (T,) or (B, T), at "
            "least one."
        )
    wrong = ids[((ids < 0) & (ids != IMAGE_TOKEN_INDEX)) | (ids >= vocab_size)]
    if wrong.numel():
        raise UserError(
            f"generate() got the token id {int(wrong[0])}; expected 0 to {vocab_size - 1}, or "
            f"{IMAGE_TOKEN_INDEX} for an image. Is it the tokenizer of this model?"
        )
    return ids


def _tensor_of(rows: list[Any] | tuple[Any, ...]) -> torch.Tensor:
    try:
        if rows and all(isinstance(row, torch.Tensor) for row in rows):
            return torch.stack(list(rows))
        return torch.tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:  # texts, or rows of different length
        raise UserError(
            f"generate() got a {type(rows).__name__} that is no batch of token ids; expected numbers in "
            f"rows of one length (pad them, and pass attention_mask), made with {HOW_TO_TOKENIZE}."
        ) from error


def checked_beside(value: object, ids: torch.Tensor, name: str) -> torch.Tensor | None:
    """Return attention_mask or position_ids as (B, T) beside ids (B, T); None stays None.

    Raises UserError for another shape. A mask of four dimensions, and positions for all rows, pass.
    """
    if value is None:
        return None
    tensor = value if isinstance(value, torch.Tensor) else _tensor_of([value]).flatten(0, -2)
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    if tensor.ndim == 2 and (tensor.shape[1] != ids.shape[1] or len(tensor) not in (1, len(ids))):
        raise UserError(
            f"generate() got {name} of shape {tuple(tensor.shape)}; expected the shape of the token ids, "
            f"{tuple(ids.shape)}."
        )
    return tensor


# ---- images ----


def checked_images(
    images: object,
    image_sizes: Sizes | None,
    processor: ImageProcessor | None,
    config: PreTrainedConfig,
    rows: int = 1,
) -> tuple[Any, Sizes | None, list[str] | None]:
    """Return pixel values, sizes and, where there are videos, modalities of images.

    Pillow images and videos are processed as the model was trained; of several images in one row each may be
    a square. processor: the tower's image processor, None for a model without one. Tensors pass as they are;
    one image (3, H, W) becomes a batch. Raises UserError for what is neither, and says which entry it is.
    """
    if isinstance(images, (Image.Image, Video)):
        images = [images]
    if images is None or (isinstance(images, (list, tuple)) and not images):
        return images, image_sizes, None
    if isinstance(images, torch.Tensor):
        _check_pixels(images, "images", (3, 4, 5))
        return (images[None] if images.ndim == 3 else images), image_sizes, None
    if not isinstance(images, (list, tuple)):
        raise UserError(f"generate() got a {type(images).__name__} as images; {_EXPECTED}")
    media = (Image.Image, Video)
    kind = media if isinstance(images[0], media) else (torch.Tensor,)
    for index, image in enumerate(images):
        if not isinstance(image, kind):
            raise UserError(f"generate() got a {type(image).__name__} as images[{index}]; {_EXPECTED}")
    if kind == (torch.Tensor,):
        for index, image in enumerate(images):
            _check_pixels(image, f"images[{index}]", (3, 4))
        return images, image_sizes, None
    if processor is None:
        raise UserError("generate() got images, and this model has no vision tower: it reads text only.")
    opened = [image if isinstance(image, Video) else as_image(image) for image in images]
    sizes = [image.size for image in opened] if image_sizes is None else image_sizes
    pixels, modalities = process_media(opened, processor, config, together=rows == 1)
    return pixels, sizes, modalities


_EXPECTED = (
    "expected Pillow images (llava.images.load_image opens files and URLs) or the tensors that process_images"
    " makes, all of one kind."
)


def _check_pixels(pixels: torch.Tensor, name: str, dimensions: tuple[int, ...]) -> None:
    """Raise UserError for a tensor that holds no processed images."""
    if pixels.is_floating_point() and pixels.ndim in dimensions and pixels.shape[-3] == 3:
        return
    kind = str(pixels.dtype).removeprefix("torch.")
    raise UserError(
        f"generate() got {name} of shape {tuple(pixels.shape)} and dtype {kind}; expected processed pixel "
        "values (..., 3, H, W) of floating point, as process_images makes, or Pillow images."
    )
