"""LLaVA on Llama and Vicuna."""

from __future__ import annotations

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from llava.model.language_model.config_mixin import ReadableByReference
from llava.model.language_model.family import Family, register_family
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaConfig(ReadableByReference, LlamaConfig):
    """Llama's config with the multimodal fields."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama with tower and projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """Llama that sees images."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # Llama's own __init__ would build a second LlamaModel
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


register_family(Family("llama", LlavaConfig, LlavaLlamaForCausalLM, packable=True, liger="llama"))
