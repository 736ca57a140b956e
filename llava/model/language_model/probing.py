"""Small random models of an LLM's kind, on which what nobody has written down about it is tried out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

if TYPE_CHECKING:
    from transformers import GenerationMixin

    class _Causal(PreTrainedModel, GenerationMixin): ...


VOCABULARY = 64
WINDOW = 8  # of sliding attention, shorter than the texts that are tried

CLOSE = 1e-3  # logits that differ by rounding do by less, those of another computation by 1e-2 and more

# Fields of configs that make a small model; a config takes those that it has. Four layers have one of each
# kind in use today, and every kind of head, expert and state is there in the smallest number that works.
SMALL: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # GPT-2's relatives, OPT, Falcon, MPT
    "n_inner": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "expansion_ratio": 2,
    "rotary_dim": 4,
    # experts
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "mlp_only_layers": [],
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # linear attention and state spaces
    "full_attn_idxs": [1, 3],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    # second embeddings are what a family is refused for; without them it may serve
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "query_pre_attn_scalar": 8,
    # what a head and embeddings do besides their weights, so strong that it shows
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "logit_scale": 0.5,
    "final_logit_softcapping": 1.0,
}
OPTIONAL = ("sliding_window", "final_logit_softcapping")  # a model that has none stays without


def small_config(config_class: type[PreTrainedConfig], **changes: object) -> Any:
    """Return a config of a small model of its kind; `changes` replace fields."""
    default = config_class()
    known = vars(default)
    names = {config_class.attribute_map.get(name, name): value for name, value in SMALL.items()}
    absent = {name for name in OPTIONAL if known.get(name) is None}
    fields = {name: value for name, value in names.items() if name in known and name not in absent}
    if "kv_lora_rank" in fields:  # latent attention has a key for each head
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    kinds = known.get("layer_types")
    if kinds and "full_attn_idxs" not in fields:  # each kind once, as often as it fits
        distinct = list(dict.fromkeys(kinds))
        fields["layer_types"] = [
            distinct[place % len(distinct)] for place in range(SMALL["num_hidden_layers"])
        ]
    settings: dict[str, Any] = {**fields, **changes}
    return config_class(**settings)


def causal_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """Return transformers' causal LM of a config's class. Raises KeyError for another kind of model."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return found[0] if isinstance(found, tuple) else found


@contextmanager
def undisturbed() -> Iterator[None]:
    """Build on the CPU in float32 whatever the caller has chosen, and leave its random numbers alone."""
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def small_model(model_type: str, **changes: object) -> Any:
    """Return a small random causal LM of a `model_type`, in eval mode, whose every weight matters."""
    config_class = CONFIG_MAPPING[model_type]
    with undisturbed():
        # not through from_config, which under ZeRO-3 would shard it
        model = causal_class(config_class)(small_config(config_class, **changes))
        for value in model.parameters():  # initial values are too small to show a fault, or not set at all
            value.copy_(value.nan_to_num(0.0, 0.0, 0.0) + torch.randn_like(value) * 0.1)
    return model.eval()


# ---- what is tried out ----


def fault_of(model: _Causal) -> str:
    """Say what keeps a small model of an LLM's kind from being a LLaVA; "" when nothing does.

    Its logits from embeddings must be those from token ids, no position may see later ones, padding on the
    left must change nothing, and `generate` must take embeddings, with a cache and without.
    """
    with undisturbed():
        order = torch.Generator().manual_seed(0)
        ids = torch.randint(3, VOCABULARY - 4, (1, WINDOW + 5), generator=order)
        embeds = model.get_input_embeddings()(ids)
        logits = model(input_ids=ids, use_cache=False).logits
        if not _close(model(inputs_embeds=embeds, use_cache=False).logits, logits):
            return "its logits from embeddings differ from those from token ids, so images would be misread"
        changed = torch.cat([ids[:, :-1], ids[:, -1:] - 1], dim=1)
        if not _close(model(input_ids=changed, use_cache=False).logits[:, :-1], logits[:, :-1]):
            return "its attention is not causal: positions see the text behind them"
        if not _close(_padded(model, embeds), logits):
            return "it reads padding, so a row of a batch is not what it is alone"
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        alone = {"attention_mask": torch.ones_like(ids), "inputs_embeds": embeds}
        try:
            answer = model.generate(**alone, **options)  # (1, 4); from embeddings it always has a cache
        except ValueError as error:
            if "inputs_embeds" not in str(error):
                raise
            return "transformers' generate() takes no embeddings for it, and images come as such"
        whole = torch.cat([embeds, model.get_input_embeddings()(answer)], dim=1)
        logits = model(inputs_embeds=whole, use_cache=False).logits[:, -5:-1]
        logits[..., SMALL["eos_token_id"]] = -torch.inf  # generate() is told not to end
        chosen = logits.argmax(-1)
    return "" if torch.equal(chosen, answer) else "its answers with a cache differ from those without"


def _padded(model: _Causal, embeds: torch.Tensor, padding: int = 3) -> torch.Tensor:
    """Return the logits (1, L, V) of embeddings (1, L, C) that stand behind padding."""
    row = torch.cat([embeds[:, :1].expand(-1, padding, -1), embeds], dim=1)
    mask = (torch.arange(row.shape[1])[None] >= padding).long()
    inputs = {"inputs_embeds": row, "attention_mask": mask}
    if "position_ids" in inspect.signature(type(model.base_model).forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return model(**inputs).logits[:, padding:]


def has_plain_head(model: _Causal) -> bool:
    """Tell whether logits are the head's weights times the last hidden states, and nothing else."""
    with undisturbed():
        ids = torch.arange(3, 12)[None]
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        plain = torch.nn.functional.linear(states, model.get_output_embeddings().weight)
        return _close(plain, model(input_ids=ids, use_cache=False).logits)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < CLOSE)
