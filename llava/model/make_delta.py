"""Subtracts a base model from a LLaVA, to publish the difference: `python -m llava.model.make_delta`."""

from __future__ import annotations

import logging

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import run_program


def make_delta(
    base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None = None
) -> None:
    """Write target - base to `delta_path`, in float16, with the target's tokenizer; the projector stays
    whole.

    hub_repo_id: also push the folder to this hub repository. Raises CheckpointError when the two do not
    belong together.
    """
    from llava.model.tools import deltas  # loads torch and transformers

    deltas.subtract_base(base_model_path, target_model_path, delta_path, hub_repo_id)


def main() -> None:
    """Parse the command line and make the delta."""
    parser = ProgramParser(description="Subtract a base model from a LLaVA model.")
    parser.add_argument(
        "--base-model-path", type=local_path, required=True, help="folder or hub name of the base model"
    )
    parser.add_argument(
        "--target-model-path", type=local_path, required=True, help="folder or hub name of the LLaVA model"
    )
    parser.add_argument("--delta-path", type=output_path, required=True, help="folder to write")
    parser.add_argument("--hub-repo-id", default=None, help="hub repository to push the delta to")
    args = parser.parse_args()
    make_delta(args.base_model_path, args.target_model_path, args.delta_path, args.hub_repo_id)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(main)
