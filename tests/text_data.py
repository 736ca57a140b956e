"""Recorded values of tests/data/text, images by formula, and folders made from one tokenizer.model."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

DATA = Path(__file__).parent / "data" / "text"
# Pillow 13 resizes tall images in another order; the recorded pixels came from Pillow 12.3
EXACT_PIXELS = int(PIL.__version__.split(".")[0]) < 13
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def cases(file: str, part: str) -> list[Any]:
    """Parameters for pytest: the recorded cases of one part of a file, each with its id."""
    content = json.loads((DATA / file).read_text(encoding="utf-8"))
    return [pytest.param(case, id=case["id"]) for case in content[part]]


def make_image(spec: dict[str, Any]) -> Image.Image:
    """An image that is a formula of its size and seed."""
    seed = spec.get("seed", 0)
    y, x = np.mgrid[0 : spec["h"], 0 : spec["w"]].astype(np.int64)
    planes = []
    for k in range(3):
        smooth = (x * (3 + seed % 5) + y * (2 + k)) // (2 + seed % 3)
        blocks = ((x // (5 + seed % 7) + y // (4 + k)) % 4) * 23
        planes.append((smooth + blocks + 60 * k + 17 * seed) % 256)
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8)).convert(spec.get("mode", "RGB"))


def check_image(image: Image.Image, expected: dict[str, Any]) -> None:
    """Compare size, mode and pixels with a recorded image."""
    assert list(image.size) == expected["size"]
    assert image.mode == expected["mode"]
    pixels = np.asarray(image.convert("RGBA" if image.mode in ("P", "RGBA", "LA") else "RGB"))
    if EXACT_PIXELS:
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected["sha"]


def check_pixels(tensor: Any, expected: dict[str, Any]) -> None:
    """Compare normalised pixel values (..., 3, H, W) with recorded ones."""
    assert list(tensor.shape) == expected["shape"]
    assert str(tensor.dtype) == expected["dtype"]
    values = tensor.double().numpy()
    levels = (values * np.array(CLIP_STD)[:, None, None] + np.array(CLIP_MEAN)[:, None, None]) * 255
    assert np.abs(levels - levels.round()).max() <= 0.02  # 8-bit levels, normalised
    if EXACT_PIXELS:
        bytes_ = levels.round().clip(0, 255).astype(np.uint8).tobytes()
        assert hashlib.sha256(bytes_).hexdigest() == expected["sha"]
        places = np.unique(np.linspace(0, values.size - 1, 6).round().astype(int))
        np.testing.assert_allclose(values.reshape(-1)[places], expected["floats"], atol=1e-4)


def from_base64(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def clip_processor(edge: int) -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}, resample=3
    )


# what the folders of the recording add to tests/data/text/tokenizer (legacy false, no added tokens)
_IM_TOKENS = {"<im_patch>": 2000, "<im_start>": 2001, "<im_end>": 2002}
_CHATML = {"<|im_start|>": 2000, "<|im_end|>": 2001}


def _token(content: str, **changes: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **plain, **changes}


_DECODER = {
    "added_tokens_decoder": {
        "0": _token("<unk>"),
        "1": _token("<s>"),
        "2": _token("</s>"),
        "2000": _token("<im_start>"),
        "2001": _token("<im_end>", lstrip=True, rstrip=True, normalized=True, special=False),
        "2002": _token("kettle", single_word=True, normalized=True, special=False),
        "2003": _token("ket", normalized=True, special=False),
        "2004": _token("[PAD]"),
    },
    "additional_special_tokens": ["<im_start>"],
    "pad_token": "[PAD]",
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "tiny_tokenizer": ({}, {}),
    "tiny_tokenizer_legacy": ({"legacy": True}, {}),
    "tiny_tokenizer_nokey": ({"legacy": "absent"}, {}),
    "legacy_null": ({"legacy": None}, {}),
    "tiny_tokenizer_imtokens": ({}, _IM_TOKENS),
    "tiny_tokenizer_imtokens_legacy": ({"legacy": True}, _IM_TOKENS),
    "tiny_tokenizer_chatml": ({}, _CHATML),
    "tiny_tokenizer_chatml_legacy": ({"legacy": True}, _CHATML),
    "eos": ({"add_eos_token": True, "add_bos_token": False}, {}),
    "decoder_True": ({**_DECODER, "legacy": True}, {}),
    "decoder_False": (_DECODER, {}),
}


def tokenizer_folder(folder: Path, kind: str = "tiny_tokenizer", model_type: str | None = None) -> Path:
    """Write a tokenizer folder of the recording; model_type goes into a config.json."""
    settings, added = KINDS[kind]
    shutil.copytree(DATA / "tokenizer", folder, dirs_exist_ok=True)
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), **settings}
    if config["legacy"] == "absent":
        del config["legacy"]
    if "added_tokens_decoder" in config:
        (folder / "special_tokens_map.json").unlink()
    file.write_text(json.dumps(config))
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 2000}))
    return folder
