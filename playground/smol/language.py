"""SmolLM2-135M-Instruct from its GGUF file: an ordinary Llama folder with tokenizer and chat template.

python -m playground.smol.language FILE.gguf FOLDER    (the package `gguf` has to be importable)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llava.atomic import atomic_folder
from llava.utils import UserError, run_program

if TYPE_CHECKING:
    from gguf import GGUFReader

CONTROL = 3  # the type of a control token in GGUF
# name in a GGUF block, name in a layer of Llama
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def make_folder(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file in float32, its tokenizer and its chat template as transformers' folder.

    Raises UserError for another kind of file.
    """
    import gguf  # from the fetched wheel, see packages.py

    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise UserError(f"{file} holds a {fields.get('general.architecture')!r}; expected a 'llama'")
    config = read_config(fields)
    model = LlamaForCausalLM(config)
    weights = dict(read_weights(reader, config))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) != tied or unexpected:
        raise UserError(f"{file} lacks {sorted(missing)}, has {sorted(unexpected)}; expected a whole Llama")
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    with atomic_folder(folder) as scratch:
        model.save_pretrained(scratch)
        read_tokenizer(fields).save_pretrained(scratch)


def read_config(fields: Mapping[str, Any]) -> LlamaConfig:
    """Return the config that a GGUF file's metadata describe."""
    heads = fields["llama.attention.head_count"]
    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=float(fields["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(fields["llama.rope.freq_base"])},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def read_weights(reader: GGUFReader, config: LlamaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights in float32 under Llama's names."""
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        name, _, kind = tensor.name.rpartition(".")
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            if part in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
                values = halves_apart(values, heads)
            yield f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}", torch.tensor(values)
        elif name in OTHER_NAMES:
            yield f"{OTHER_NAMES[name]}.{kind}", torch.tensor(values)


def halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of each head back in the order of transformers.

    llama.cpp rotates neighbours (rows 0 and 1, 2 and 3, ...), transformers a row of the first half with one
    of the second.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])  # (heads, head / 2, 2, in)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer of a GGUF file; SmolLM's cuts each digit off."""
    if (before := fields["tokenizer.ggml.pre"]) != "smollm":
        raise UserError(f"the tokenizer of the GGUF file cuts texts as {before!r} does; expected 'smollm'")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    inner = Tokenizer(models.BPE(vocab={one: number for number, one in enumerate(tokens)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [one for one, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    inner.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in control])
    named = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        chat_template=fields["tokenizer.chat_template"],
        extra_special_tokens=[one for one in control if one not in named.values()],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **named,
    )


def describe(folder: Path) -> str:
    """Say what a folder holds, for the log."""
    config = json.loads((folder / "config.json").read_text())
    shape = f"{config['num_hidden_layers']} layers, {config['hidden_size']} wide"
    return f"{config['model_type']}, {shape}, {config['vocab_size']:,} tokens"


def main() -> None:
    """Convert the file that the command line names."""
    make_folder(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"  {sys.argv[2]}: {describe(Path(sys.argv[2]))}", flush=True)


if __name__ == "__main__":
    run_program(main)
