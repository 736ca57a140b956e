"""LLaVA on MPT."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, MptForCausalLM, MptModel

from llava.model.language_model.config_mixin import ReadableByReference
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMptConfig(ReadableByReference, MptConfig):
    """MPT's config with the multimodal fields."""

    model_type = "llava_mpt"


class LlavaMptModel(LlavaMetaModel, MptModel):
    """MPT with tower and projector."""

    config_class = LlavaMptConfig

    def embed_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed token ids; the name that Llama models have."""
        return self.wte(input_ids)


class LlavaMptForCausalLM(LlavaMetaForCausalLM, MptForCausalLM):
    """MPT that sees images."""

    config_class = LlavaMptConfig

    def __init__(self, config: LlavaMptConfig) -> None:
        super(MptForCausalLM, self).__init__(config)  # MPT's own __init__ would build a second MptModel
        self.transformer = LlavaMptModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(LlavaMptConfig.model_type, LlavaMptConfig)
AutoModelForCausalLM.register(LlavaMptConfig, LlavaMptForCausalLM)
