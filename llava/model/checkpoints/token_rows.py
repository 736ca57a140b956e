"""Rows that new tokens get in the embeddings and in the head."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.checkpoints.files import CheckpointError, read_tensors
from llava.model.checkpoints.gather import full_values, gathered
from llava.protocols import CausalModel, Tokenizer

logger = logging.getLogger(__name__)

STORED_ROWS = "new_token_rows."  # begins the names of saved rows in non_lora_trainables.bin


def average_new_rows(model: CausalModel, new: int) -> None:
    """Set the last `new` rows of input and output embeddings to the mean of the rows before them."""
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        with gathered([embeddings.weight], write=True):
            rows = embeddings.weight.data
            rows[-new:] = rows[:-new].mean(dim=0, keepdim=True)


def add_image_tokens(
    model: CausalModel,
    tokenizer: Tokenizer,
    *,
    patch_token: bool,
    start_end: bool,
    projector_file: str | None,
) -> None:
    """Add the image tokens that training asks for to the tokenizer, and rows for them to the embeddings.

    <im_start> and <im_end> start from the mean of the old rows, or from stage 1's projector file.
    """
    if patch_token:
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if start_end:
        new = tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if new > 0:
            average_new_rows(model, new)
        if projector_file:
            load_start_end_rows(model, projector_file, new)


def new_token_rows(model: CausalModel, new: int) -> dict[str, torch.Tensor]:
    """Return the last `new` rows of input and output embeddings, gathered, by the names they are saved under.

    The reference's loader passes over names that its model lacks.
    """
    if new <= 0:
        return {}
    parts = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    return {f"{STORED_ROWS}{name}": full_values(part.weight)[-new:].clone() for name, part in parts.items()}


def set_new_token_rows(model: CausalModel, stored: Mapping[str, torch.Tensor], source: str) -> None:
    """Fill the last rows of the embeddings with what `new_token_rows` stored; `source` is named in errors."""
    for name, part in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        rows = stored.get(f"{STORED_ROWS}{name}")
        if rows is None:
            continue
        if rows.shape[1] != part.weight.shape[1] or len(rows) > len(part.weight):
            raise CheckpointError(
                f"{source} holds rows of new tokens of shape {tuple(rows.shape)}; the model's embeddings are "
                f"{tuple(part.weight.shape)}. Is this the right base model?"
            )
        with gathered([part.weight], write=True), torch.no_grad():
            part.weight.data[-len(rows) :] = rows.to(part.weight)


def load_start_end_rows(model: CausalModel, file: str, new: int) -> None:
    """Fill the last `new` input rows, of <im_start> and <im_end>, from the projector file of stage 1."""
    stored = next((v for name, v in read_tensors(file).items() if name.endswith("embed_tokens.weight")), None)
    if stored is None:  # a projector that was trained without these tokens
        logger.warning("%s holds no embeddings of <im_start> and <im_end>; they start from the mean", file)
        return
    with gathered([model.get_input_embeddings().weight], write=True):
        embeddings = model.get_input_embeddings().weight.data
        if new == 0 or stored.shape not in (embeddings.shape, embeddings[-new:].shape):
            raise CheckpointError(
                f"{file} holds embeddings of shape {tuple(stored.shape)}; expected "
                f"{tuple(embeddings.shape)}, or "
                f"({new}, {embeddings.shape[1]}) for the {new} new tokens."
            )
        embeddings[-new:] = stored[-new:].to(embeddings)
