"""Subtracts a base model from a LLaVA, to publish the difference: `python -m llava.model.make_delta`."""

from __future__ import annotations

import argparse
import logging

import torch

from llava.model.checkpoints.writing import refuse_input_as_target, whole_folder
from llava.model.tokenizer import load_tokenizer
from llava.model.tools.deltas import combine, load_for_delta
from llava.utils import run_program

logger = logging.getLogger(__name__)


def make_delta(
    base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None = None
) -> None:
    """Write target - base to `delta_path`, in float16, with the target's tokenizer; the projector stays
    whole.

    hub_repo_id: also push the folder to this hub repository. Raises CheckpointError when the two do not
    belong together.
    """
    refuse_input_as_target(delta_path, (base_model_path, target_model_path))
    base = load_for_delta(base_model_path)
    model = load_for_delta(target_model_path)
    with torch.no_grad():
        combine(model, base.state_dict(), torch.Tensor.sub_, source=target_model_path)
    tokenizer = load_tokenizer(target_model_path)
    with whole_folder(delta_path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if hub_repo_id:
        model.push_to_hub(hub_repo_id)
        tokenizer.push_to_hub(hub_repo_id)
    logger.info("wrote %s", delta_path)


def main() -> None:
    """Parse the command line and make the delta."""
    parser = argparse.ArgumentParser(description="Subtract a base model from a LLaVA model.")
    parser.add_argument("--base-model-path", required=True, help="folder or hub name of the base model")
    parser.add_argument("--target-model-path", required=True, help="folder or hub name of the LLaVA model")
    parser.add_argument("--delta-path", required=True, help="folder to write")
    parser.add_argument("--hub-repo-id", default=None, help="hub repository to push the delta to")
    args = parser.parse_args()
    make_delta(args.base_model_path, args.target_model_path, args.delta_path, args.hub_repo_id)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(main)
