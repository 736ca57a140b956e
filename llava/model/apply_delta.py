"""Adds a published delta to its base model: `python -m llava.model.apply_delta`."""

from __future__ import annotations

import argparse
import logging

import torch

from llava.model.checkpoints.writing import refuse_input_as_target, whole_folder
from llava.model.tokenizer import load_tokenizer
from llava.model.tools.deltas import combine, load_for_delta
from llava.utils import run_program

logger = logging.getLogger(__name__)


def apply_delta(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Write base + delta to `target_model_path`, in float16, with the delta's tokenizer.

    Rows of the embeddings beyond the base's vocabulary, and weights that only the delta has (the projector),
    are taken from the delta as they are. Raises CheckpointError when the two do not belong together.
    """
    refuse_input_as_target(target_model_path, (base_model_path, delta_path))
    base = load_for_delta(base_model_path)
    model = load_for_delta(delta_path)
    with torch.no_grad():
        combine(model, base.state_dict(), torch.Tensor.add_, source=delta_path)
    with whole_folder(target_model_path) as folder:
        model.save_pretrained(folder)
        load_tokenizer(delta_path).save_pretrained(folder)
    logger.info("wrote %s", target_model_path)


def main() -> None:
    """Parse the command line and apply the delta."""
    parser = argparse.ArgumentParser(description="Add a delta to its base model.")
    parser.add_argument("--base-model-path", required=True, help="folder or hub name of the base model")
    parser.add_argument("--target-model-path", required=True, help="folder to write")
    parser.add_argument("--delta-path", required=True, help="folder or hub name of the delta")
    args = parser.parse_args()
    apply_delta(args.base_model_path, args.target_model_path, args.delta_path)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(main)
