"""Rows that new tokens get in the embeddings and in the head."""

from __future__ import annotations

import logging
from typing import Any

from llava.model.checkpoints.files import CheckpointError, read_tensors
from llava.model.checkpoints.gather import whole

logger = logging.getLogger(__name__)


def average_new_rows(model: Any, new: int) -> None:
    """Set the last `new` rows of input and output embeddings to the mean of the rows before them."""
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        with whole([embeddings.weight], write=True):
            rows = embeddings.weight.data
            rows[-new:] = rows[:-new].mean(dim=0, keepdim=True)


def load_start_end_rows(model: Any, file: str, new: int) -> None:
    """Fill the last `new` input rows, of <im_start> and <im_end>, from the projector file of stage 1."""
    stored = next((v for name, v in read_tensors(file).items() if name.endswith("embed_tokens.weight")), None)
    if stored is None:  # a projector that was trained without these tokens
        logger.warning("%s holds no embeddings of <im_start> and <im_end>; they start from the mean", file)
        return
    with whole([model.get_input_embeddings().weight], write=True):
        embeddings = model.get_input_embeddings().weight.data
        if new == 0 or stored.shape not in (embeddings.shape, embeddings[-new:].shape):
            raise CheckpointError(
                f"{file} holds embeddings of shape {tuple(stored.shape)}; expected "
                f"{tuple(embeddings.shape)}, or "
                f"({new}, {embeddings.shape[1]}) for the {new} new tokens."
            )
        embeddings[-new:] = stored[-new:].to(embeddings)
