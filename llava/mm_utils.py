"""Pixels and token ids: tiling, process_images, tokenizer_image_token, model names, stopping at keywords."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.images import ImageError, expand2square, load_image, load_image_from_base64
from llava.protocols import ImageProcessor
from llava.utils import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = [
    "ImageError",
    "KeywordsStoppingCriteria",
    "divide_to_patches",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image",
    "load_image_from_base64",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
]

Size = tuple[int, int]  # (width, height)


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size | None:
    """Choose the canvas that keeps most of an image's pixels.

    Of equals the one with the least waste wins, then the first. Sizes are (width, height). Returns None when
    there is nothing to choose from. LLaVA-1.6 calls these resolutions grid pinpoints.
    """
    width, height = original_size

    def usefulness(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]  # more is better; the second is minus the wasted pixels

    return max(possible_resolutions, key=usefulness, default=None)


SQUARE_RULES = ("square", "pad")
_TILED = re.compile(r"anyres(?:_max_([1-9]\d{0,5}))?")
_SHAPE = r"\((\d{1,2})x(\d{1,2})\)"  # tiles across and down
GRID_FORMS = '[[336, 672], [672, 336]] in pixels, or tiles as text: "(1x1),...,(6x6)"'


def check_aspect_ratio(rule: object) -> str:
    """Return a rule of `image_aspect_ratio`. Raises UserError for one that is not known."""
    if isinstance(rule, str) and (rule in SQUARE_RULES or _TILED.fullmatch(rule)):
        return rule
    raise UserError(
        f"image_aspect_ratio is {rule!r}; known values: {', '.join(SQUARE_RULES)}, anyres, and anyres_max_N "
        "(N: tiles whose patches an image keeps, as anyres_max_9)."
    )


def cuts_tiles(rule: str | None) -> bool:
    """Tell whether an `image_aspect_ratio` cuts images into tiles. Raises UserError for an unknown one."""
    return rule is not None and check_aspect_ratio(rule) not in SQUARE_RULES


def tile_cap(rule: str | None) -> int | None:
    """Return N of anyres_max_N: so many tiles' patches an image keeps at most. None for other rules."""
    found = _TILED.fullmatch(rule or "")
    return int(found[1]) if found and found[1] else None


def parse_grid_pinpoints(
    grid_pinpoints: str | Sequence[Sequence[int]], tile_size: int | None = None
) -> list[Size]:
    """Read the grid pinpoints of a config as (width, height) pairs in pixels.

    They are a list of pairs, one written as text, or shapes in tiles, "(1x2),(2x1)", which "..." between two
    continues: "(1x1),...,(6x6)" has every shape from 1 to 6 tiles across and down. tile_size: pixels of a
    tile, without which shapes are returned in tiles. Raises UserError.
    """
    if isinstance(grid_pinpoints, str) and "x" in grid_pinpoints:
        return _parse_shapes(grid_pinpoints, tile_size or 1)
    try:
        value = ast.literal_eval(grid_pinpoints) if isinstance(grid_pinpoints, str) else grid_pinpoints
        pairs = [(int(width), int(height)) for width, height in value]
    except (SyntaxError, TypeError, ValueError) as error:
        message = f"image_grid_pinpoints is {grid_pinpoints!r}; expected pairs: {GRID_FORMS}"
        raise UserError(message) from error
    if not pairs:
        raise UserError("image_grid_pinpoints is empty; give at least one [width, height]")
    return pairs


def _parse_shapes(text: str, tile_size: int) -> list[Size]:
    """Read "(axb),(cxd)" or "(axb),...,(cxd)" as (width, height) pairs in pixels."""
    plain = text.replace(" ", "")
    shapes = [(int(across), int(down)) for across, down in re.findall(_SHAPE, plain)]
    if re.fullmatch(rf"{_SHAPE},\.\.\.,{_SHAPE}", plain):
        first, last = shapes
        wide, high = range(first[0], last[0] + 1), range(first[1], last[1] + 1)
        shapes = [(across, down) for across in wide for down in high]
    elif not re.fullmatch(rf"{_SHAPE}(?:,{_SHAPE})*", plain):
        shapes = []
    if not shapes or any(0 in shape for shape in shapes):
        raise UserError(f"image_grid_pinpoints is {text!r}; expected {GRID_FORMS}")
    return [(across * tile_size, down * tile_size) for across, down in shapes]


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: str | Sequence[Sequence[int]], patch_size: int
) -> Size:
    """Return how many tiles (across, down) an image of image_size = (width, height) is divided into."""
    best = select_best_resolution(image_size, parse_grid_pinpoints(grid_pinpoints, patch_size))
    assert best is not None  # parse_grid_pinpoints returns at least one
    return best[0] // patch_size, best[1] // patch_size


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fit an image into (width, height) keeping its shape, centred on black. The result is RGB."""
    width, height = image.size
    target_width, target_height = target_resolution
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        size = target_width, min(math.ceil(height * scale_width), target_height)
    else:
        size = min(math.ceil(width * scale_height), target_width), target_height
    canvas = Image.new("RGB", (target_width, target_height), (0, 0, 0))
    canvas.paste(image.resize(size), ((target_width - size[0]) // 2, (target_height - size[1]) // 2))
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cut an image into square tiles, row by row; tiles that reach over its edge are filled with black."""
    width, height = image.size
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def process_anyres_image(
    image: Image.Image, processor: ImageProcessor, grid_pinpoints: str | Sequence[Sequence[int]]
) -> torch.Tensor:
    """Turn an image into an overview and its tiles, as LLaVA-1.6 does: (1 + tiles, 3, H, W)."""
    best = select_best_resolution(image.size, parse_grid_pinpoints(grid_pinpoints, _crop_height(processor)))
    assert best is not None
    edge = _shortest_edge(processor)
    overview = image.resize((edge, edge))  # the shape is lost here on purpose: checkpoints depend on it
    tiles = divide_to_patches(resize_and_pad_image(image, best), _crop_height(processor))
    # one image at a time: a processor may treat a list of differently sized images in another way
    return _stack([_pixel_values(processor, tile) for tile in [overview, *tiles]])


def process_images(
    images: Sequence[Image.Image], image_processor: ImageProcessor, model_cfg: PreTrainedConfig
) -> torch.Tensor | list[torch.Tensor]:
    """Turn images into pixel values by the rule that `model_cfg.image_aspect_ratio` names.

    "pad" pads to a square with the processor's mean colour; "anyres" and "anyres_max_N" make an overview and
    tiles by `model_cfg.image_grid_pinpoints`; "square", or none, leaves the image to the processor. Returns
    one tensor (n, 3, H, W) or, with anyres, (n, tiles, 3, H, W); a list of tensors when their shapes differ.
    Raises UserError for another rule.
    """
    if not images:
        raise ImageError("there are no images to process; pass at least one, or images=None to the model")
    rule = getattr(model_cfg, "image_aspect_ratio", None)
    if rule == "pad":
        # truncated, not rounded: (122, 116, 104) for CLIP, as the checkpoints were trained
        mean_color = tuple(int(channel * 255) for channel in image_processor.image_mean)
        values = [_pixel_values(image_processor, expand2square(image, mean_color)) for image in images]
    elif cuts_tiles(rule):
        pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
        if pinpoints is None:
            raise UserError(f"image_aspect_ratio {rule!r} needs image_grid_pinpoints, which the config lacks")
        values = [process_anyres_image(image, image_processor, pinpoints) for image in images]
    else:
        values = [_pixel_values(image_processor, _cut_strip(image, image_processor)) for image in images]
    if all(value.shape == values[0].shape for value in values):
        return _stack(values)
    return values


def _pixel_values(processor: ImageProcessor, image: Image.Image) -> torch.Tensor:
    """Process one image: (3, H, W)."""
    return processor.preprocess(image, return_tensors="pt")["pixel_values"][0]


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(tensors)


def _shortest_edge(processor: ImageProcessor) -> int:
    """Return the edge that images are resized to; processors that do not crop name a height instead."""
    size = processor.size
    return size["shortest_edge"] if "shortest_edge" in size else size["height"]


def _crop_height(processor: ImageProcessor) -> int:
    crop_size = getattr(processor, "crop_size", None)
    return crop_size["height"] if crop_size else _shortest_edge(processor)


# A strip of 1 x 4000, its short side resized to 336, would be 336 x 1,344,000 before its centre is cut out.
_MAX_RESIZED_PIXELS = 64_000_000


def _cut_strip(image: Image.Image, processor: ImageProcessor) -> Image.Image:
    """Cut the middle out of an image so long and thin that resizing it whole would exhaust the memory."""
    short, long = min(image.size), max(image.size)
    if "shortest_edge" not in processor.size or not getattr(processor, "do_center_crop", False):
        return image
    edge = processor.size["shortest_edge"]
    if edge * edge * long <= _MAX_RESIZED_PIXELS * short:
        return image
    keep = 16 * short  # the crop shows the middle `short` pixels, the rest is margin for the filter
    left, top = (max(0, (side - keep) // 2) for side in image.size)
    return image.crop((left, top, min(image.width, left + keep), min(image.height, top + keep)))


def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | torch.Tensor:
    """Tokenize a prompt in which each `<image>` becomes the id image_token_index.

    The texts between images are tokenized one by one, and only the first keeps its start token. Returns a
    list, or a 1-D int64 tensor for return_tensors="pt".
    """
    first, *rest = (tokenizer(text).input_ids for text in prompt.split(DEFAULT_IMAGE_TOKEN))
    start = [tokenizer.bos_token_id]
    ids = list(first)
    for chunk in rest:
        ids.append(image_token_index)
        # the reference drops the id whatever it is: lost text where GPT-NeoX begins with its end token
        ids.extend(chunk[1:] if first[:1] == start == chunk[:1] else chunk)
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise UserError(
            f"return_tensors is {return_tensors!r}; expected None for a list or 'pt' for a tensor"
        )
    import torch

    return torch.tensor(ids, dtype=torch.long)


def get_model_name_from_path(model_path: str) -> str:
    """Return a model's name: the last part of its path, with its parent in front for checkpoint-N folders."""
    parts = model_path.strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


class KeywordsStoppingCriteria:
    """Stops generation where a keyword ends; pass it in `generate(..., stopping_criteria=[criteria])`.

    keywords: texts to stop at; input_ids: the prompt, (rows, length). A call returns a bool for each row, so
    that the rows of a batch stop one by one.
    """

    def __init__(
        self, keywords: Sequence[str], tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor
    ) -> None:
        import torch

        self.keywords = keywords
        self.tokenizer = tokenizer
        self.keyword_ids: list[torch.Tensor] = []
        for keyword in keywords:
            ids = tokenizer(keyword).input_ids
            if len(ids) > 1 and ids[0] == tokenizer.bos_token_id:
                ids = ids[1:]
            self.keyword_ids.append(torch.tensor(ids))
        self.max_keyword_len = max((len(ids) for ids in self.keyword_ids), default=0)
        self.start_len = input_ids.shape[1]
        self._prompts = input_ids

    def __call__(self, output_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """Tell for each row of output_ids (rows, length) whether it is complete: (rows,) bool."""
        import torch

        done = [self.call_for_batch(row[None], scores, **kwargs) for row in output_ids]
        return torch.tensor(done, dtype=torch.bool, device=output_ids.device)

    def call_for_batch(self, output_ids: torch.Tensor, scores: object, **kwargs: object) -> bool:
        """Tell whether one row of ids (1, length) ends with a keyword."""
        row = output_ids[0].tolist()
        for ids in self.keyword_ids:
            if len(ids) <= len(row) and row[len(row) - len(ids) :] == ids.tolist():
                return True
        # a keyword may also be cut into other tokens, so the text of the last few is searched as well
        generated = len(row) - self.start_len if self._holds_prompt(row) else len(row)
        window = min(generated, self.max_keyword_len)
        # with nothing generated the reference searches the whole row; recorded values depend on it
        tail = row[len(row) - window :] if window else row
        text = self.tokenizer.decode([i for i in tail if i != IMAGE_TOKEN_INDEX], skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)

    def _holds_prompt(self, row: list[int]) -> bool:
        """Tell whether a row begins with a prompt: generation from embeddings passes only the new ids."""
        if len(row) < self.start_len:
            return False
        return any(row[: self.start_len] == prompt.tolist() for prompt in self._prompts)
