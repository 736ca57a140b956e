"""LLaVA on MPT."""

import torch
from torch import nn
from transformers import MptConfig, MptForCausalLM, MptModel

from llava.model.language_model.config_mixin import ReadableByReference
from llava.model.language_model.family import Family, register_family
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


register_family(
    Family(  # not packable: ALiBi knows distances, and no positions that start again
        "mpt", LlavaMptConfig, LlavaMptForCausalLM, attention=("eager",), packable=False, exports=False,
        embedding="wte", final_norm="norm_f", positions="max_seq_len",
    )
)  # fmt: skip
