"""Cases of the tests over all LLM families: a small bare LLM on disk, and the LLaVA loaded from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from llava.model.checkpoints.files import read_config
from llava.model.checkpoints.loading import from_pretrained
from llava.model.language_model.probing import VOCABULARY, small_model
from llava.model.language_model.registry import Family, family_of, llava_config

# every kind of head, norm, mask and expert once; the others are slow tests
CORE = ("llama", "qwen2", "qwen3_moe", "gemma2", "gemma3_text", "granite", "gpt_oss", "gpt_neox")
OTHERS = (
    "apertus", "arcee", "bitnet", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5",
    "exaone4", "falcon", "gemma", "gemma4_text", "glm", "glm4", "gpt2", "granitemoe", "helium",
    "hunyuan_v1_dense", "lfm2", "ministral", "ministral3", "mistral", "mixtral", "nanochat", "nemotron",
    "olmo", "olmo2", "olmo3", "opt", "phi", "phi3", "phimoe", "qwen2_moe", "qwen3", "qwen3_5_text",
    "qwen3_next", "seed_oss", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
IMAGE = -200


@dataclass
class Case:
    """A family on a small model. folder: of the bare LLM; info: what loading it as a LLaVA reported."""

    family: Family
    bare: Any
    folder: Path
    model: Any
    info: dict[str, Any]


def build_case(base_type: str, tower: Path, folder: Path) -> Case:
    """Write a small bare LLM, load it as training does, and give it a tower and a projector."""
    bare = small_model(base_type)
    bare.save_pretrained(folder)
    config = read_config(folder)
    family = family_of(config, str(folder))
    model, info = from_pretrained(
        family.model_class, str(folder), config=llava_config(config), dtype=torch.float32
    )
    attach(model, tower)
    return Case(family, bare, folder, model.eval(), info)


def attach(model: Any, tower: Path) -> None:
    """Give a model a tower and a new projector, whose features are as strong as embeddings."""
    arguments = SimpleNamespace(
        vision_tower=str(tower),
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="flat",
        pretrain_mm_mlp_adapter=None,
    )
    torch.manual_seed(3)
    model.get_model().initialize_vision_modules(arguments)
    model.config.tokenizer_padding_side = "right"
    model.config.tokenizer_model_max_length = 256


def batch() -> dict[str, Any]:
    """Two rows of different length with an image each, longer than sliding windows, padded on the right."""
    order = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCABULARY - 4, (2, 15), generator=order)
    ids[0, 3] = ids[1, 2] = IMAGE
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    labels = ids.masked_fill((mask == 0) | (ids == IMAGE), -100)
    labels[:, :6] = -100
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "images": torch.randn(2, 3, 28, 28, generator=order),
    }
