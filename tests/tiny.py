"""Tiny random LLaVA models of every LLM family and their CLIP tower, built from config with fixed seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

FAMILIES = ("llama", "mistral", "mpt")
IMAGE = -200  # id of the image token
IMAGE_SIZE = 28  # pixels the tower sees
PATCHES = 16  # of one tower image: 4 x 4
VOCABULARY = 96
# (width, height) of whole tile grids: 1 x 2, 2 x 1, 2 x 2 and 3 x 1 tiles
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28]]


def tower_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a random CLIP tower (4 layers, 16 wide, 28 pixels, patches of 7) and its processor's config."""
    settings = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 7,
    }
    torch.manual_seed(seed)
    model = CLIPVisionModel(CLIPVisionConfig(**{**settings, **changes}))
    with torch.no_grad():  # CLIP's own initial values are so small that no image would make a difference
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    edge = model.config.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": edge},
        "crop_size": {"height": edge, "width": edge},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def llava_config(family: str, tower: Path | str, **changes: Any) -> Any:
    """Return the config of a tiny v1.5-style LLaVA; `changes` replace or add fields."""
    from llava.model import LlavaConfig, LlavaMistralConfig, LlavaMptConfig

    llama = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    mpt = {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 512}
    common = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_vision_tower": str(tower),
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": PINPOINTS,
    }
    classes = {"llama": LlavaConfig, "mistral": LlavaMistralConfig, "mpt": LlavaMptConfig}
    own = {"llama": llama, "mistral": {**llama, "sliding_window": None}, "mpt": mpt}
    return classes[family](**{**own[family], **common, **changes})


def llava_class(family: str) -> type[PreTrainedModel]:
    """Return the LLaVA class of a family."""
    from llava.model import LlavaLlamaForCausalLM, LlavaMistralForCausalLM, LlavaMptForCausalLM

    classes = {"llama": LlavaLlamaForCausalLM, "mistral": LlavaMistralForCausalLM, "mpt": LlavaMptForCausalLM}
    return classes[family]


def llava_model(family: str, tower: Path | str, seed: int = 1, **changes: Any) -> Any:
    """Build a tiny LLaVA with its tower loaded, in float32, eval mode, with weights wide enough to matter."""
    torch.manual_seed(seed)
    model = llava_class(family)(llava_config(family, tower, **changes))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "vision_tower" not in name:
                value.add_(torch.randn_like(value) * 0.15)
    model.get_vision_tower().load_model()
    return model.eval()


def train_two_steps(model: Any, ids: torch.Tensor, images: torch.Tensor) -> list[float]:
    """Train what requires a gradient on ids (1, T) and images; returns the losses, stays in training mode."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    losses = []
    for _ in range(2):
        loss = model.train()(input_ids=ids, labels=ids.clamp(min=0), images=images).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def bare_model(model: Any) -> Any:
    """Return transformers' own LLM with the weights of a LLaVA's LLM."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = model.config.to_dict()
    base_type = fields["model_type"].removeprefix("llava_")
    multimodal = ("mm_", "image_", "use_mm_proj", "tokenizer_", "unfreeze_", "tune_")
    fields = {name: value for name, value in fields.items() if not name.startswith(multimodal)}
    for name in ("model_type", "architectures"):
        fields.pop(name, None)
    bare = AutoModelForCausalLM.from_config(CONFIG_MAPPING[base_type](**fields), dtype=torch.float32)
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if not any(part in name for part in ("mm_projector", "vision_tower", "image_newline"))
    }
    bare.load_state_dict(weights)
    return bare.eval()


def token_ids(count: int, seed: int = 0) -> torch.Tensor:
    """Return `count` ordinary token ids (count,), none of them special."""
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def prompt(*parts: int | str, seed: int = 0) -> torch.Tensor:
    """Return ids (1, T): a number stands for that many text tokens, "image" for one image token."""
    pieces = [
        torch.tensor([IMAGE]) if part == "image" else token_ids(int(part), seed + index)
        for index, part in enumerate(parts)
    ]
    return torch.cat(pieces)[None]


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return random images of `shape` (..., 3, H, W), by default one image for the tower (1, 3, 28, 28)."""
    shape = shape or (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
