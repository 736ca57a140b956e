"""Forks extend `llava`: a new LLM family on the mixins, replaced functions, names from their old places."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)

from llava import conversation as conversation_lib
from llava.model import llava_arch
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

# ---------------------------------------------------------------------------------------- a family of a fork


class ForkConfig(Qwen2Config):
    """A fork's config."""

    model_type = "llava_qwen2_fork"


class ForkModel(LlavaMetaModel, Qwen2Model):
    """A fork's model without head."""

    config_class = ForkConfig

    def __init__(self, config):
        super().__init__(config)


class ForkForCausalLM(Qwen2ForCausalLM, LlavaMetaForCausalLM):
    """Written as the reference writes its families: the LLM first, then the mixin, and methods of its own."""

    config_class = ForkConfig

    def __init__(self, config):
        super(Qwen2ForCausalLM, self).__init__(config)
        self.model = ForkModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self):
        return self.model

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        images=None,
        image_sizes=None,
        **kwargs,
    ):
        if inputs_embeds is None:
            (input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels) = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes
                )
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, inputs=None, images=None, image_sizes=None, **kwargs):
        position_ids = kwargs.pop("position_ids", None)
        attention_mask = kwargs.pop("attention_mask", None)
        if images is not None:
            (inputs, position_ids, attention_mask, _, inputs_embeds, _) = (
                self.prepare_inputs_labels_for_multimodal(
                    inputs, position_ids, attention_mask, None, None, images, image_sizes=image_sizes
                )
            )
        else:
            inputs_embeds = self.get_model().embed_tokens(inputs)
        return super().generate(
            position_ids=position_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, inputs_embeds=None, **kwargs):
        images, image_sizes = kwargs.pop("images", None), kwargs.pop("image_sizes", None)
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        if images is not None:
            inputs["images"] = images
        if image_sizes is not None:
            inputs["image_sizes"] = image_sizes
        return inputs


class ShortForCausalLM(LlavaMetaForCausalLM, Qwen2ForCausalLM):
    """Written as this library's families: the mixin first, whose forward and generate serve."""

    config_class = ForkConfig

    def __init__(self, config):
        super(Qwen2ForCausalLM, self).__init__(config)
        self.model = ForkModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register("llava_qwen2_fork", ForkConfig)
AutoModelForCausalLM.register(ForkConfig, ForkForCausalLM)


@pytest.fixture
def fork(tower):
    """A tiny model of the fork's class, with its tower."""
    fields = {
        name: value
        for name, value in tiny.llava_config("llama", tower).to_dict().items()
        if name.startswith(
            ("mm_", "image_", "hidden_size", "intermediate", "num_", "vocab", "max_pos", "use_mm")
        )
    }
    torch.manual_seed(0)
    model = ForkForCausalLM(ForkConfig(**fields)).eval()
    model.get_vision_tower().load_model()
    return model


def test_a_new_family_in_the_references_style(fork):
    ids, images = tiny.prompt(3, "image", 4), tiny.pixels()
    with torch.no_grad():
        out = fork(input_ids=ids, labels=ids.clamp(min=0), images=images)
    assert out.logits.shape == (1, 7 + tiny.PATCHES, tiny.VOCABULARY)
    assert torch.isfinite(out.loss)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    new = fork.generate(ids, images=images, image_sizes=[(28, 28)], **options)
    assert new.shape == (1, 4)
    assert fork.generate(tiny.prompt(5), **options).shape == (1, 4)
    short = ShortForCausalLM(fork.config).eval()
    short.get_vision_tower().load_model()
    short.load_state_dict(fork.state_dict())
    with torch.no_grad():
        assert torch.equal(short(input_ids=ids, images=images).logits, out.logits)
    assert torch.equal(short.generate(ids, images=images, **options), new)


def test_a_new_family_trains_saves_and_loads(fork, tmp_path):
    ids = tiny.prompt(3, "image", 4)
    fork.train()
    fork(input_ids=ids, labels=ids.clamp(min=0), images=tiny.pixels()).loss.backward()
    assert fork.get_model().mm_projector[0].weight.grad is not None
    fork.eval().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(again) is ForkForCausalLM
    again.get_vision_tower().load_model()
    with torch.no_grad():
        torch.testing.assert_close(
            again(input_ids=ids, images=tiny.pixels()).logits,
            fork(input_ids=ids, images=tiny.pixels()).logits,
        )


def test_a_new_family_gets_its_tower_for_training(fork, tower):
    config = ForkConfig(**{k: v for k, v in fork.config.to_dict().items() if not k.startswith("mm_")})
    model = ForkForCausalLM(config)
    assert model.get_vision_tower() is None
    arguments = SimpleNamespace(
        vision_tower=str(tower),
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        pretrain_mm_mlp_adapter=None,
        mm_patch_merge_type="flat",
        mm_projector_type="linear",
    )
    model.get_model().initialize_vision_modules(model_args=arguments, fsdp=None)
    assert model.get_vision_tower().is_loaded
    assert isinstance(model.get_model().mm_projector, nn.Linear)


# ---------------------------------------------------------------------------------------- replaced functions


def test_replaced_methods_of_the_mixin_are_used(build, monkeypatch):
    model = build()
    calls = []

    def wrap(name):
        old = getattr(LlavaMetaForCausalLM, name)

        def new(self, *args, **kwargs):
            calls.append(name)
            return old(self, *args, **kwargs)

        monkeypatch.setattr(llava_arch.LlavaMetaForCausalLM, name, new)

    wrap("prepare_inputs_labels_for_multimodal")
    wrap("encode_images")
    ids = tiny.prompt(3, "image", 4)
    model(input_ids=ids, images=tiny.pixels())
    model.generate(ids, images=tiny.pixels(), max_new_tokens=1)
    assert calls == ["prepare_inputs_labels_for_multimodal", "encode_images"] * 2


def test_a_replaced_preparation_decides(build, monkeypatch):
    """Six values, with the reference's names, as forks that add tokens of their own return them."""
    model = build()

    def text_only(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None
    ):
        embeds = self.get_model().embed_tokens(input_ids.clamp(min=0))
        return None, position_ids, attention_mask, past_key_values, embeds, labels

    monkeypatch.setattr(LlavaMetaForCausalLM, "prepare_inputs_labels_for_multimodal", text_only)
    logits = model(input_ids=tiny.prompt(3, "image", 4), images=tiny.pixels()).logits
    assert logits.shape[1] == 8


def test_a_replaced_tower_forward_is_used(build, monkeypatch):
    model = build()
    monkeypatch.setattr(
        CLIPVisionTower, "forward", lambda self, images: torch.zeros(len(images), 5, self.hidden_size)
    )
    assert model.encode_images(tiny.pixels()).shape == (1, 5, 32)


def test_replaced_functions_of_llava_arch_are_used(build, monkeypatch):
    fields = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}
    model = build(**fields)
    ids, images = tiny.prompt(3, "image", 4), [tiny.pixels(5, 3, 28, 28)]
    calls = []
    for name in ("unpad_image", "get_anyres_image_grid_shape"):
        old = getattr(llava_arch, name)
        monkeypatch.setattr(llava_arch, name, lambda *a, old=old, name=name: (calls.append(name), old(*a))[1])
    model(input_ids=ids, images=images, image_sizes=[(56, 56)])
    assert sorted(calls) == ["get_anyres_image_grid_shape", "unpad_image"]
    built = []
    monkeypatch.setattr(
        llava_arch, "build_vision_projector", lambda config, **_: built.append(1) or nn.Identity()
    )
    tiny.llava_class("llama")(model.config)
    assert built == [1]


def test_the_default_conversation_may_be_replaced(monkeypatch):
    from llava.train.train import preprocess_multimodal

    monkeypatch.setattr(conversation_lib, "default_conversation", conversation_lib.conv_templates["v0_mmtag"])
    arguments = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False)
    turns = [[{"from": "human", "value": "What? <image>"}, {"from": "gpt", "value": "A cat."}]]
    assert preprocess_multimodal(turns, arguments)[0][0]["value"].startswith("<Image><image></Image>")


# ----------------------------------------------------------------------------------------------- the members

MEMBERS = {
    "llava.conversation.Conversation": "get_prompt append_message process_image get_images to_gradio_chatbot "
    "copy dict",
    "llava.mm_utils.KeywordsStoppingCriteria": "call_for_batch __call__",
    "llava.model.llava_arch.LlavaMetaModel": "get_vision_tower initialize_vision_modules",
    "llava.model.llava_arch.LlavaMetaForCausalLM": "get_model get_vision_tower encode_images "
    "prepare_inputs_labels_for_multimodal initialize_vision_tokenizer",
    "llava.model.language_model.llava_llama.LlavaLlamaForCausalLM": "forward generate "
    "prepare_inputs_for_generation get_model",
    "llava.model.language_model.llava_mistral.LlavaMistralForCausalLM": "forward generate "
    "prepare_inputs_for_generation get_model",
    "llava.model.language_model.llava_mpt.LlavaMptForCausalLM": "forward generate get_model",
    "llava.model.language_model.llava_mpt.LlavaMptModel": "embed_tokens",
    "llava.model.multimodal_encoder.clip_encoder.CLIPVisionTower": "load_model feature_select forward "
    "dummy_feature dtype device config hidden_size num_patches_per_side num_patches",
    "llava.train.train.LazySupervisedDataset": "lengths modality_lengths __getitem__ __len__",
    "llava.train.train.DataCollatorForSupervisedDataset": "__call__",
    "llava.train.llava_trainer.LLaVATrainer": "_get_train_sampler create_optimizer _save_checkpoint _save",
    "llava.train.llava_trainer.LengthGroupedSampler": "__iter__ __len__",
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_of_public_classes(name):
    module, _, cls = name.rpartition(".")
    found = getattr(importlib.import_module(module), cls)
    missing = [member for member in MEMBERS[name].split() if not hasattr(found, member)]
    assert not missing


SIGNATURES = {
    "llava.mm_utils.process_images": "images image_processor model_cfg",
    "llava.mm_utils.tokenizer_image_token": "prompt tokenizer image_token_index return_tensors",
    "llava.mm_utils.KeywordsStoppingCriteria": "keywords tokenizer input_ids",
    "llava.mm_utils.expand2square": "pil_img background_color",
    "llava.model.llava_arch.unpad_image": "tensor original_size",
    "llava.model.llava_arch.get_anyres_image_grid_shape": "image_size grid_pinpoints patch_size",
    "llava.model.llava_arch.LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal": "self input_ids "
    "position_ids attention_mask past_key_values labels images image_sizes",
    "llava.model.llava_arch.LlavaMetaForCausalLM.initialize_vision_tokenizer": "self model_args tokenizer",
    "llava.model.llava_arch.LlavaMetaModel.initialize_vision_modules": "self model_args fsdp",
    "llava.model.multimodal_encoder.clip_encoder.CLIPVisionTower": "vision_tower args delay_load",
    "llava.model.language_model.llava_llama.LlavaLlamaForCausalLM.generate": "self inputs images "
    "image_sizes kwargs",
    "llava.model.language_model.llava_llama.LlavaLlamaForCausalLM.forward": "self input_ids attention_mask "
    "position_ids past_key_values inputs_embeds labels use_cache output_attentions output_hidden_states "
    "images image_sizes return_dict",
    "llava.train.train.preprocess": "sources tokenizer has_image",
    "llava.train.train.LazySupervisedDataset": "data_path tokenizer data_args",
    "llava.train.train.make_supervised_data_module": "tokenizer data_args",
    "llava.train.train.train": "attn_implementation",
    "llava.train.llava_trainer.LengthGroupedSampler": "batch_size world_size lengths generator "
    "group_by_modality",
}


def _find(name):
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_have_the_references_names_and_order(name):
    wanted = SIGNATURES[name].split()
    got = list(inspect.signature(_find(name)).parameters)
    assert got[: len(wanted)] == wanted
