"""What --push_to_hub needs, as far as this machine knows it before the hub is asked."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from llava.model.checkpoints.errors import first_line
from llava.utils import UserError


def check_hub(args: TrainingArguments) -> None:
    """Raise UserError for a --push_to_hub that has no token, no network or no name of a repository."""
    if not args.push_to_hub:
        return
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "--push_to_hub True cannot work: HF_HUB_OFFLINE is set in the environment; unset it, or leave "
            "the flag out"
        )
    if not (args.hub_token or get_token()):
        raise UserError(
            "--push_to_hub True needs a token of the hub, and there is none; run `hf auth login`, set "
            "HF_TOKEN, or give --hub_token"
        )
    named = args.hub_model_id
    try:
        validate_repo_id(named if named is not None else Path(args.output_dir or "").absolute().name)
    except HFValidationError as error:
        flag, value = ("hub_model_id", named) if named is not None else ("output_dir", args.output_dir)
        raise UserError(
            f"--{flag} is {value}, and --push_to_hub True takes the repository's name from it: "
            f"{first_line(error)}; give --hub_model_id NAME or OWNER/NAME"
        ) from error
