"""Short answers to the questions of a file; and a loader of its prompts and images, for other loops."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset

from llava.conversation import conversation_for, find_template
from llava.eval.run.asking_files import answer_file
from llava.eval.run.doors import check_chunk
from llava.images import load_image
from llava.inference.prompt import encode_prompt, new_dialog
from llava.mm_utils import get_model_name_from_path, process_images
from llava.protocols import ImageProcessor
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# ids of the prompt, pixel values, (width, height)
Prompt = tuple[torch.Tensor, torch.Tensor, tuple[int, int]]


class Question(TypedDict):
    """A line of a question file; other keys are not read."""

    image: str
    text: str


class CustomDataset(Dataset[Prompt]):
    """The prompts and images of questions, made when they are asked for.

    Item: ids (tokens,) with IMAGE_TOKEN_INDEX in the image's place, what `process_images` makes of the image
    ((tiles,) 3, height, width), and its size (width, height). conv_mode: key of conv_templates, which the
    reference takes from a global of its script. Raises UserError for an unknown one, ImageError at the item.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        image_folder: str,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: ImageProcessor,
        model_config: PreTrainedConfig,
        conv_mode: str = "llava_v1",
    ) -> None:
        self.questions, self.image_folder = questions, image_folder
        self.tokenizer, self.image_processor, self.model_config = tokenizer, image_processor, model_config
        self.template = conversation_for(find_template(conv_mode).conversation, tokenizer)

    def __getitem__(self, index: int) -> Prompt:
        """Return ids, pixel values and size of one question."""
        question = self.questions[index]
        image = load_image(Path(self.image_folder) / question["image"])
        dialog = new_dialog(self.template, question["text"], image, self.model_config, has_tower=True)
        ids = encode_prompt(self.tokenizer, dialog.conversation, n_images=1)
        pixels = process_images([image], self.image_processor, self.model_config)[0]
        return torch.tensor(ids), pixels, image.size

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.questions)


def collate_fn(batch: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """Stack the items of a batch: ids (items, tokens), pixel values (items, ...), sizes."""
    ids, pixels, sizes = zip(*batch, strict=True)
    return torch.stack(ids), torch.stack(pixels), list(sizes)


def create_data_loader(
    questions: Sequence[Question],
    image_folder: str,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: ImageProcessor,
    model_config: PreTrainedConfig,
    batch_size: int = 1,
    num_workers: int = 4,
    conv_mode: str = "llava_v1",
) -> DataLoader[Prompt]:
    """Return a loader of CustomDataset in order. Raises UserError for batches: prompts differ in length."""
    if batch_size != 1:
        raise UserError(
            f"batch_size is {batch_size}; this loader gives one prompt at a time, "
            "llava.load(...).batch asks many together"
        )
    dataset = CustomDataset(questions, image_folder, tokenizer, image_processor, model_config, conv_mode)
    return DataLoader(dataset, batch_size=1, num_workers=num_workers, shuffle=False, collate_fn=collate_fn)


def eval_model(args: argparse.Namespace) -> int:
    """Answer what the flags of the program name; returns the exit code, 1 where a question has no answer."""
    check_chunk(args)
    conv_mode = args.conv_mode
    name = get_model_name_from_path(args.model_path).lower()
    if "plain" in name and "finetune" not in name and "mmtag" not in conv_mode:
        conv_mode += "_mmtag"
        print(f"{args.model_path} seems to be a plain model; its template is {conv_mode}")
    return answer_file(args, max_new_tokens=args.max_new_tokens, conv_mode=conv_mode)
