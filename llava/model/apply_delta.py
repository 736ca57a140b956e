"""Adds a published delta to its base model: `python -m llava.model.apply_delta`."""

from __future__ import annotations

import logging

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import run_program


def apply_delta(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Write base + delta to `target_model_path`, in float16, with the delta's tokenizer.

    Rows of the embeddings beyond the base's vocabulary, and weights that only the delta has (the projector),
    are taken from the delta as they are. Raises CheckpointError when the two do not belong together.
    """
    from llava.model.tools import deltas  # loads torch and transformers

    deltas.add_base(base_model_path, target_model_path, delta_path)


def main() -> None:
    """Parse the command line and apply the delta."""
    parser = ProgramParser(description="Add a delta to its base model.")
    parser.add_argument(
        "--base-model-path", type=local_path, required=True, help="folder or hub name of the base model"
    )
    parser.add_argument("--target-model-path", type=output_path, required=True, help="folder to write")
    parser.add_argument(
        "--delta-path", type=local_path, required=True, help="folder or hub name of the delta"
    )
    args = parser.parse_args()
    apply_delta(args.base_model_path, args.target_model_path, args.delta_path)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(main)
