"""Tokens of a record for the data doctor, counted as training counts them, images included."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from llava import conversation
from llava.constants import IGNORE_INDEX
from llava.model.checkpoints.files import read_config
from llava.model.multimodal.config import VIDEO_SETTINGS, MultimodalConfig
from llava.model.multimodal.features import count_features
from llava.model.multimodal.video import count_video_features
from llava.model.multimodal_encoder.registry import describe_tower
from llava.model.multimodal_projector.registry import projected_tile
from llava.train.data.check_settings import CheckSettings, Size
from llava.train.data.samples import SampleMaker, choose_tile_grids
from llava.train.labels.preprocess import choose_label_masks
from llava.train.plan import DataSettings
from llava.train.records import Fault, Record
from llava.train.setup.tokenizer import load_training_tokenizer
from llava.utils import UserError
from llava.video import Outline

NO_LIMIT = 1_000_000  # tokens


def _quietly(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function of training without its warnings: what it warns about is a finding here."""
    warner = logging.getLogger("llava.train")
    level = warner.level
    warner.setLevel(logging.ERROR)
    try:
        return function(*arguments)
    finally:
        warner.setLevel(level)


class TokenChecker:
    """Counts the tokens of a record as training does, images included."""

    def __init__(self, settings: CheckSettings) -> None:
        """Load tokenizer and template. Raises UserError."""
        self.limit = settings.model_max_length
        tokenizer, template = load_training_tokenizer(
            settings.model_name_or_path or "", settings.version, model_max_length=NO_LIMIT
        )
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        self.tokenizer = tokenizer
        conv = conversation.conversation_for(template, tokenizer)
        with_images = DataSettings(
            is_multimodal=True,
            mm_use_im_start_end=settings.mm_use_im_start_end,
            add_time_instruction=settings.add_time_instruction,
            label_masks=_quietly(choose_label_masks, settings.label_masks, conv, tokenizer),
        )
        self.maker = SampleMaker(tokenizer, with_images, conv)
        self.image_tokens = ImageTokens(settings) if settings.vision_tower else None

    def check(self, record: Record, sizes: Sequence[Size | Outline]) -> Iterator[Fault]:
        """Yield a fault for a record that is too long or trains nothing. sizes: of its images, or video."""
        try:
            video = next((one for one in sizes if isinstance(one, Outline)), None)
            sample = _quietly(self.maker.encode, record, video)
            counts = [
                1 if self.image_tokens is None else self.image_tokens.count(size, alone=len(sizes) == 1)
                for size in sizes
            ]
            length = len(sample["input_ids"]) - len(counts) + sum(counts)
            if length > self.limit:
                what = "images" if video is None else "frames"
                yield Fault(
                    "too_long",
                    f"it has {length} tokens, {sum(counts)} of them for {what}; "
                    f"what is beyond {self.limit} is cut off",
                )
            elif bool((sample["labels"] == IGNORE_INDEX).all()):
                yield Fault(
                    "nothing_supervised", "no token of it is trained on; its text confuses the template"
                )
        except UserError as error:  # the template cannot hold these turns
            yield Fault("template", str(error))


class ImageTokens:
    """How many tokens an image becomes, by the code that joins the features of its tiles."""

    def __init__(self, settings: CheckSettings) -> None:
        """Read the sizes of the tower, and the tile grids of the model. Raises UserError."""
        model = read_config(settings.model_name_or_path or "")
        fields = SimpleNamespace(
            mm_vision_tower=settings.vision_tower,
            mm_vision_select_feature=settings.mm_vision_select_feature,
            mm_vision_select_layer=settings.mm_vision_select_layer or model.get("mm_vision_select_layer"),
            mm_vision_resolution=settings.mm_vision_resolution or model.get("mm_vision_resolution"),
            mm_projector_type=settings.mm_projector_type or model.get("mm_projector_type"),
            mm_patch_merge_type=settings.mm_patch_merge_type,
        )
        wanted = MultimodalConfig.of(fields)
        tower = describe_tower(wanted)
        self.edge, self.tile = tower.tile_size, projected_tile(wanted, tower.tile_features)
        grids = choose_tile_grids(
            settings.image_grid_pinpoints,
            model.get("image_grid_pinpoints"),
            aspect_ratio=settings.image_aspect_ratio,
            tile_edge=self.edge,
        )
        self.settings = MultimodalConfig.checked(
            {
                "mm_hidden_size": tower.hidden_size,
                "image_grid_pinpoints": grids,
                "image_aspect_ratio": settings.image_aspect_ratio,
                "mm_patch_merge_type": settings.mm_patch_merge_type,
                "mm_tunable_parts": model.get("mm_tunable_parts"),
                "mm_resampler_type": model.get("mm_resampler_type"),
                **{name: vars(settings)[name] or model.get(name) for name in VIDEO_SETTINGS},
            }
        )

    def count(self, size: Size | Outline, *, alone: bool = True) -> int:
        """Return the tokens of an image of `size` (width, height), which may be alone in its record.

        Of a video it is told which frames are taken.
        """
        if isinstance(size, Outline):
            frames = len(size.chosen)
            return count_video_features(frames, settings=self.settings, patches_per_side=self.tile.side)
        if not alone and self.settings.pads_several:
            return self.tile.count + self.settings.has_newline
        return count_features(
            size,
            settings=self.settings,
            patches_per_side=self.tile.side,
            extra=self.tile.extra,
            tile_size=self.edge,
        )
