"""The chat template (jinja) and processor files of a llava-hf folder, made from LLaVA's own rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.atomic import write_text
from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.conversation import Conversation, template_of
from llava.model.conversion.config import FLAT, NEXT, NEXT_VIDEO, ONEVISION, WITH_VIDEO
from llava.model.multimodal_encoder.base import VisionTower
from llava.protocols import ImageProcessor

_IMAGE_PROCESSORS = {
    NEXT: "LlavaNextImageProcessor",
    NEXT_VIDEO: "LlavaNextImageProcessor",
    ONEVISION: "LlavaOnevisionImageProcessor",
}
_PROCESSORS = {
    FLAT: "LlavaProcessor",
    NEXT: "LlavaNextProcessor",
    NEXT_VIDEO: "LlavaNextVideoProcessor",
    ONEVISION: "LlavaOnevisionProcessor",
}
_VIDEO_PROCESSORS = {NEXT_VIDEO: "LlavaNextVideoVideoProcessor", ONEVISION: "LlavaOnevisionVideoProcessor"}
VIDEO_FILE = "video_preprocessor_config.json"


def chat_template(conversation: Conversation, *, start_end: bool = False, videos: bool = False) -> str:
    """Return a template in jinja; see `Template.jinja`. start_end: `mm_use_im_start_end`."""
    return template_of(conversation).jinja(start_end=start_end, videos=videos)


# ------------------------------------------------------------------------------------------- processor files


def image_processor_name(tower_class: type[VisionTower]) -> str:
    """Return the name under which transformers' files know a tower's image processor."""
    return tower_class.processor_class.__name__.removesuffix("Pil")


def image_processor_fields(processor: ImageProcessor, hf: dict[str, Any]) -> dict[str, Any]:
    """Return the content of preprocessor_config.json: the settings with which pixel values equal LLaVA's.

    processor: the tower's image processor. hf: content of the folder's config.json.
    """
    kind, pads = hf["model_type"], hf["image_aspect_ratio"] == "pad"
    own = "LlavaImageProcessor" if pads else type(processor).__name__.removesuffix("Pil")
    fields = {
        "image_processor_type": _IMAGE_PROCESSORS.get(kind, own),
        "do_resize": True,
        "size": _numbers(processor.size),
        "resample": int(processor.resample),
        "do_center_crop": bool(processor.do_center_crop),
        "crop_size": _numbers(processor.crop_size),
        "do_rescale": True,
        "rescale_factor": processor.rescale_factor,
        "do_normalize": True,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "do_convert_rgb": True,
    }
    if not fields["crop_size"]:
        del fields["crop_size"]
    if kind != FLAT:
        fields["image_grid_pinpoints"] = hf["image_grid_pinpoints"]
    if kind != FLAT or pads:
        fields["do_pad"] = (
            True  # to a square with the mean colour; of others: batches to equal numbers of tiles
        )
    return fields


def _numbers(size: Mapping[str, int] | None) -> dict[str, int]:
    sizes = size or {}
    return {name: int(sizes[name]) for name in ("shortest_edge", "height", "width") if sizes.get(name)}


def save_processor(folder: Path, image_fields: dict[str, Any], hf: dict[str, Any], template: str) -> None:
    """Write the processor's files under the names that transformers 4 and 5, vLLM and SGLang look for."""
    kind = hf["model_type"]
    name = _PROCESSORS[kind]
    processor = {
        "processor_class": name,
        "image_token": DEFAULT_IMAGE_TOKEN,
        "vision_feature_select_strategy": hf["vision_feature_select_strategy"],
    }
    if kind == ONEVISION:
        processor |= {
            "num_image_tokens": hf["image_seq_length"],
            "vision_aspect_ratio": hf["vision_aspect_ratio"],
        }
    else:  # one more is the CLS token, which "default" takes off again
        processor |= {"patch_size": hf["vision_config"]["patch_size"], "num_additional_image_tokens": 1}
    if kind in WITH_VIDEO:
        processor["video_token"] = DEFAULT_VIDEO_TOKEN
    contents: dict[str, dict[str, Any]] = {
        "processor_config.json": processor,
        "preprocessor_config.json": {**image_fields, "processor_class": name},
        "chat_template.json": {"chat_template": template},
    }
    if kind in WITH_VIDEO:
        frames = {k: v for k, v in image_fields.items() if k not in ("image_grid_pinpoints", "do_pad")}
        frames.pop("image_processor_type")
        contents[VIDEO_FILE] = {
            **frames,
            "video_processor_type": _VIDEO_PROCESSORS[kind],
            "processor_class": name,
        }
    for file, content in contents.items():
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)
        write_text(folder / file, text + "\n")
    write_text(folder / "chat_template.jinja", template)


def image_aspect_ratio(fields: dict[str, Any]) -> str:
    """Tell LLaVA's image_aspect_ratio from the content of a llava-hf folder's preprocessor_config.json."""
    pads = str(fields.get("image_processor_type", "")).startswith("LlavaImageProcessor") and fields.get(
        "do_pad"
    )
    return "pad" if pads else "square"
