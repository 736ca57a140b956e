"""Projects that load and wrap LLaVA models: doubles of ms-swift and of callers of LLaVA-NeXT's builder."""

from __future__ import annotations

import copy
import warnings
from functools import wraps

import numpy as np
import pytest
import torch
from PIL import Image

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    process_images,
    tokenizer_image_token,
)
from llava.model import LlavaConfig, LlavaLlamaForCausalLM, LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaConfig as LlavaConfigOfItsModule

KEYS = ("llava-tiny-v1.5", "llava-tiny-v1.6", "llava-tiny-v1.6-mistral", "llava-tiny-mpt")


def sample_image(width=70, height=40, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


# ------------------------------------------------------------------------------------------------ lmms-eval


# ------------------------------------------------------------------------------------------------- ms-swift


@pytest.mark.parametrize(
    ("key", "config_class", "model_class"),
    [
        ("llava-tiny-v1.6", LlavaConfig, LlavaLlamaForCausalLM),
        ("llava-tiny-v1.6-mistral", LlavaMistralConfig, LlavaMistralForCausalLM),
    ],
)
def test_ms_swift_loads_wraps_and_asks(key, config_class, model_class, checkpoints):
    """Config edited before loading, tower loaded by hand, forward and generate replaced on the instance."""
    folder = checkpoints / key
    config = config_class.from_pretrained(folder)
    config.mm_vision_tower = str(checkpoints / "tiny-clip")
    model = model_class.from_pretrained(folder, config=config, dtype=torch.float32, device_map={"": "cpu"})
    tokenizer = load_pretrained_model(str(folder), None, key, device="cpu")[0]
    model.resize_token_embeddings(len(tokenizer))
    tower = model.get_vision_tower()
    device_map = str({"": "cpu"}.get("", model.device))
    if not tower.is_loaded:
        tower.load_model(device_map=device_map)
    tower.to(device=model.device, dtype=model.dtype)
    assert not hasattr(model.config, "max_sequence_length")

    seen = []
    old_forward, old_generate = model.forward, model.generate

    @wraps(old_forward)
    def forward(*args, **kwargs):
        seen.append("forward")
        return old_forward(*args, **kwargs)

    @wraps(old_generate)
    def generate(inputs=None, *args, **kwargs):
        ids = kwargs.pop("input_ids", None)
        return old_generate(ids if inputs is None else inputs, *args, **kwargs)

    model.forward, model.generate = forward, generate
    sample_images = [sample_image()]
    images = process_images(sample_images, tower.image_processor, model.config)
    ids = tokenizer_image_token(
        f"USER: {DEFAULT_IMAGE_TOKEN}\nWhat? ASSISTANT:", tokenizer, return_tensors="pt"
    )
    inputs = {"images": images.to(model.dtype), "image_sizes": [one.size for one in sample_images]}
    new = model.generate(
        input_ids=ids[None],
        attention_mask=torch.ones_like(ids[None]),
        max_new_tokens=3,
        do_sample=False,
        **inputs,
    )
    assert new.shape[0] == 1 and seen
    assert torch.equal(new, old_generate(inputs=ids[None], max_new_tokens=3, do_sample=False, **inputs))
    model.train()
    loss = model(input_ids=ids[None], labels=ids[None], **inputs).loss
    loss.backward()
    assert model.model.mm_projector[0].weight.grad is not None
    assert model.model.vision_tower is tower
    names = {name for name, _ in model.named_modules()}
    assert {"model.vision_tower", "model.mm_projector", "model.layers", "lm_head"} <= names


@pytest.mark.parametrize("device_map", ["cpu", "auto", None, {"": "cpu"}])
def test_towers_take_what_callers_pass_as_device_map(checkpoints, device_map):
    config = LlavaConfigOfItsModule.from_pretrained(checkpoints / "llava-tiny-v1.5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlavaLlamaForCausalLM.from_pretrained(checkpoints / "llava-tiny-v1.5", config=config)
    tower = model.get_vision_tower()
    tower.load_model(device_map=device_map)
    assert tower.is_loaded and tower.device.type == "cpu"
    tower.load_model(device_map=device_map)


# ---------------------------------------------------------------------------- callers of LLaVA-NeXT's builder


def test_llava_next_callers(checkpoints):
    tokenizer, model, processor, context = load_pretrained_model(
        str(checkpoints / "llava-tiny-v1.6"),
        None,
        "llava_llama",
        device_map="cpu",
        torch_dtype="bfloat16",
        attn_implementation="eager",
        overwrite_config={"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat", "vocab_size": 1000},
        customized_config=None,
    )
    model.eval()
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    image = sample_image()
    tensors = [one.to(dtype=torch.float16) for one in process_images([image], processor, model.config)]
    conv = copy.deepcopy(conv_templates["llava_v1"])
    conv.append_message(conv.roles[0], f"{DEFAULT_IMAGE_TOKEN}\nWhat?")
    conv.append_message(conv.roles[1], None)
    ids = tokenizer_image_token(conv.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
    new = model.generate(
        ids, images=tensors, image_sizes=[image.size], do_sample=False, temperature=0, max_new_tokens=3
    )
    assert tokenizer.batch_decode(new, skip_special_tokens=True)
    stop = conv.sep if conv.sep_style != SeparatorStyle.TWO else conv.sep2
    assert stop == "</s>"


def test_the_recipe_with_start_and_end_tokens(checkpoints):
    """Older callers put <im_start> and <im_end> around the image token where the config asks for it."""
    loaded = load_pretrained_model(str(checkpoints / "llava-tiny-v0"), None, "llava-v0", device_map="cpu")
    tokenizer, model, processor, _ = loaded
    assert model.config.mm_use_im_start_end
    text = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN + "\nWhat?"
    conv = conv_templates["llava_v0"].copy()
    conv.append_message(conv.roles[0], text)
    conv.append_message(conv.roles[1], None)
    ids = tokenizer_image_token(conv.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
    pixels = processor.preprocess(sample_image(), return_tensors="pt")["pixel_values"][0]
    criteria = KeywordsStoppingCriteria([conv.sep], tokenizer, ids)
    new = model.generate(
        ids,
        images=pixels.unsqueeze(0).half(),
        do_sample=True,
        temperature=0.2,
        max_new_tokens=3,
        stopping_criteria=[criteria],
    )
    assert new.shape[0] == 1
