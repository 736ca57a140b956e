"""LLaVA on Mistral."""

from __future__ import annotations

from torch import nn
from transformers import MistralConfig, MistralForCausalLM, MistralModel

from llava.model.language_model.config_mixin import ReadableByReference
from llava.model.language_model.family import Family, register_family
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMistralConfig(ReadableByReference, MistralConfig):
    """Mistral's config with the multimodal fields."""

    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    """Mistral with tower and projector."""

    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaMetaForCausalLM, MistralForCausalLM):
    """Mistral that sees images."""

    config_class = LlavaMistralConfig

    def __init__(self, config: LlavaMistralConfig) -> None:
        # Mistral's own __init__ would build a second MistralModel
        super(MistralForCausalLM, self).__init__(config)
        self.model = LlavaMistralModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


register_family(
    Family("mistral", LlavaMistralConfig, LlavaMistralForCausalLM, packable=True, liger="mistral")
)
