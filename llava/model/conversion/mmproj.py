"""llama.cpp's second file: vision tower and projector of a llava-hf folder as GGUF (the "mmproj")."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from llava.atomic import atomic_file
from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError
from llava.model.checkpoints.writing import explained_write, refuse_unwritable
from llava.model.conversion import weights
from llava.model.conversion.config import ARCHITECTURES, FLAT, NEXT, PINPOINTS, check_hf, vision_config
from llava.model.conversion.keys import TOWER_PREFIX, from_hf_name
from llava.utils import UserError, import_optional

if TYPE_CHECKING:
    from gguf import GGUFWriter

# parts of our names -> llama.cpp's (tools/mtmd/clip-impl.h, the lines TN_*)
_PARTS = (
    (TOWER_PREFIX, "v."),
    ("model.mm_projector.", "mm."),
    ("embeddings.class_embedding", "class_embd"),
    ("embeddings.patch_embedding.", "patch_embd."),
    ("embeddings.position_embedding.", "position_embd."),
    ("pre_layrnorm.", "pre_ln."),
    ("encoder.layers.", "blk."),
    ("self_attn.out_proj.", "attn_out."),
    ("layer_norm", "ln"),
    ("mlp.fc1.", "ffn_up."),
    ("mlp.fc2.", "ffn_down."),
)
_ATTENTION = re.compile(r"self_attn\.([qkv])_proj\.")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_FTYPES = {torch.float32: 0, torch.float16: 1}


def write_mmproj(source: str, output: str | Path, *, dtype: torch.dtype | None = torch.float16) -> int:
    """Write the vision half of a llava-hf folder for llama.cpp; returns the number of tensors.

    The file has the tower up to the layer whose features are used, so llama.cpp needs no setting for that.
    dtype: of the matrices, float16 or float32; vectors are float32. Needs the package gguf.
    """
    if dtype not in _FTYPES:
        raise UserError(f"The dtype of an mmproj is {dtype}; expected float16 or float32.")
    refuse_unwritable(output, "DST", folder=False)
    gguf: ModuleType = import_optional("gguf", needed_for="writing a GGUF file", install="gguf")
    config = files.read_config(source)
    kind = check_hf(config, source)
    if kind not in (FLAT, NEXT):
        raise CheckpointError(
            f"{source} is a {ARCHITECTURES[kind]}, which llama.cpp's files of towers and projectors are not "
            f"written for here; known: {ARCHITECTURES[FLAT]}, {ARCHITECTURES[NEXT]}."
        )
    if config.get("vision_feature_select_strategy", "default") != "default":
        raise CheckpointError(f"{source} keeps the CLS feature, which llama.cpp's LLaVA takes off.")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with explained_write(output, "DST"), atomic_file(output) as scratch:
        writer = gguf.GGUFWriter(scratch, "clip")
        layers = _add_fields(writer, config, kind, source)
        writer.add_file_type(_FTYPES[dtype])
        count = 0
        for name, value in weights.stored(source, _is_vision):
            ours = from_hf_name(name)
            layer = _LAYER.search(ours)
            if "post_layernorm." in ours or (layer and int(layer.group(1)) >= layers):
                continue
            matrix = value.ndim > 1 and "position_embedding" not in ours
            writer.add_tensor(_gguf_name(ours), value.to(dtype if matrix else torch.float32).numpy())
            count += 1
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return count


def _is_vision(name: str) -> bool:
    parts = ("vision_tower.", "multi_modal_projector.", "image_newline")
    return any(part in name for part in parts) and not files.is_recomputed(name)


def _add_fields(writer: GGUFWriter, config: dict[str, Any], kind: str, source: str) -> int:
    """Write the header's fields; returns how many layers of the tower are needed."""
    vision = vision_config(config)
    select = config.get("vision_feature_layer", -2)
    layers = select if select >= 0 else vision.num_hidden_layers + 1 + select
    writer.add_name(Path(source).name)
    writer.add_description("vision tower and projector of a LLaVA")
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", vision.hidden_act == "gelu")  # False: quick_gelu, which is OpenAI's CLIP
    numbers = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embedding_length": vision.hidden_size,
        "feed_forward_length": vision.intermediate_size,
        "projection_dim": vision.projection_dim,
        "attention.head_count": vision.num_attention_heads,
        "block_count": layers,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
    # without this llama.cpp stops one layer before the last of the file
    writer.add_array("clip.vision.feature_layer", [layers])
    file = files.find_file(source, "preprocessor_config.json")
    processor = files.read_json(file) if file else {}
    for name, default in (("image_mean", _CLIP_MEAN), ("image_std", _CLIP_STD)):
        writer.add_array(f"clip.vision.{name}", [float(one) for one in processor.get(name, default)])
    if kind == NEXT:
        writer.add_string("clip.vision.mm_patch_merge_type", "spatial_unpad")
        pinpoints = (
            config.get("image_grid_pinpoints") or PINPOINTS
        )  # (height, width); llama.cpp: (width, height)
        writer.add_array(
            "clip.vision.image_grid_pinpoints", [side for pair in pinpoints for side in pair[::-1]]
        )
    return layers


_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _gguf_name(name: str) -> str:
    if name == "model.image_newline":
        return "v.image_newline"
    name = _ATTENTION.sub(r"attn_\1.", name)
    for part, replacement in _PARTS:
        name = name.replace(part, replacement)
    return name
