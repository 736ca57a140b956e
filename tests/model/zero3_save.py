"""Loads a checkpoint under DeepSpeed ZeRO-3 in one CPU process and saves it: zero3_save.py FOLDER OUT."""

import sys

import deepspeed
import torch

deepspeed.init_distributed(dist_backend="gloo")  # before from_pretrained, or it fails (world size 1)

from transformers.integrations import HfDeepSpeedConfig  # noqa: E402

from llava.model import LlavaLlamaForCausalLM  # noqa: E402


def main(folder: str, out: str) -> None:
    """Load under ZeRO-3, gather every weight, save."""
    settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
    keep = HfDeepSpeedConfig(settings)  # from_pretrained asks for it as long as it lives
    model = LlavaLlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.get_vision_tower().load_model()
    assert all(hasattr(parameter, "ds_id") for parameter in model.parameters()), "nothing was partitioned"
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    del keep


if __name__ == "__main__":
    main(*sys.argv[1:])
