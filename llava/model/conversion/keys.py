"""Names of weights in LLaVA's checkpoints and in those of transformers, old and new."""

from __future__ import annotations

import re

# LLaVA's prefix -> the prefix that llava-hf folders on the hub have and every transformers since 4.37 reads
_TO_HF = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)

# the same read backwards, and as transformers 5 names its modules: the first match counts
_FROM_HF = (
    (re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?"), _TO_HF[0][0]),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.linear_1\."), _TO_HF[1][0]),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.linear_2\."), _TO_HF[2][0]),
    (re.compile(r"^(?:model\.)?image_newline$"), _TO_HF[3][0]),
    (re.compile(r"^(?:language_model\.)?lm_head\."), _TO_HF[4][0]),
    (re.compile(r"^(?:language_model\.model|model\.language_model(?:\.model)?)\."), _TO_HF[5][0]),
)

TOWER_PREFIX = _TO_HF[0][0]
UNUSED_BY_HF = (f"{_TO_HF[0][0]}head.",)  # SigLIP's pooling head, of which no feature is made
VISION_LEVEL = "vision_model."  # in the names of every tower's weights in LLaVA, dropped by transformers 5
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
VOCABULARY_WEIGHTS = (EMBEDDING, HEAD)


_WITHOUT_LEVEL = re.compile(rf"^model\.vision_tower\.vision_tower\.(?!{re.escape(VISION_LEVEL)})")


def llava_name(name: str) -> str:
    """Return the reference's name of a weight of a LLaVA checkpoint, whoever saved it."""
    return _WITHOUT_LEVEL.sub(TOWER_PREFIX, name)


def to_hf_name(name: str) -> str:
    """Return the name that a llava-hf folder has for a weight of LLaVA."""
    for prefix, replacement in _TO_HF:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    raise KeyError(name)


def from_hf_name(name: str) -> str:
    """Return LLaVA's name of a weight of a llava-hf folder, written by any version of transformers."""
    for pattern, replacement in _FROM_HF:
        renamed, found = pattern.subn(replacement, name)
        if found:
            return renamed
    raise KeyError(name)
