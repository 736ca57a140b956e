"""A small CLIP vision tower made from scratch: training images against the words of their captions."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from playground.digits.images import Digits, distort, load_halves, render
from playground.digits.progress import Progress
from playground.digits.questions import WORDS

SEED = 2023
IMAGE_SIZE = 32
SELECT_LAYER = -2  # --mm_vision_select_layer of the training commands
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TowerRecipe:
    """Size and training of the tower."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    patch_size: int = 16
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    average: float = 0.995  # decay of the moving average of the weights, which is what is kept
    seed: int = SEED


class Contrast(nn.Module):
    """A vision tower and the text side that it is trained against, which is thrown away afterwards.

    The text side is a vector for the one word in which the captions of two digits differ; the words that all
    captions share cannot tell images apart.
    """

    def __init__(self, recipe: TowerRecipe) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=recipe.hidden_size,
            intermediate_size=4 * recipe.hidden_size,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=recipe.num_heads,
            image_size=IMAGE_SIZE,
            patch_size=recipe.patch_size,
        )
        self.tower = CLIPVisionModel(config)
        self.project = nn.Linear(recipe.hidden_size, 64, bias=False)
        self.project_patches = nn.Linear(recipe.hidden_size, 64, bias=False)
        self.words = nn.Embedding(len(WORDS), 64)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Score images (n, side, side) against the words of the ten digits: (2, n, 10).

        The first scores come from the class token, as in CLIP, the second from the mean of the patches in the
        layer that LLaVA reads: so both say what the image shows.
        """
        output = self.tower(normalise(images), output_hidden_states=True)
        patches = output.hidden_states[SELECT_LAYER][:, 1:].mean(dim=1)  # (n, hidden_size)
        both = torch.stack([self.project(output.pooler_output), self.project_patches(patches)])
        words = F.normalize(self.words.weight, dim=-1)  # (10, 64)
        return F.normalize(both, dim=-1) @ words.T * self.scale.exp().clamp(max=100)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Turn grey images (n, side, side) from 0 to 1 into the tower's input (n, 3, side, side)."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images[:, None] - mean) / std


def tower_images(digits: Digits) -> torch.Tensor:
    """Render digits at the tower's size: (n, 32, 32)."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    small = F.interpolate(
        render(digits.ink)[:, None], size=size, mode="bicubic", align_corners=False, antialias=True
    )
    return small[:, 0].clamp(0.0, 1.0)


def train_tower(digits: Digits, recipe: TowerRecipe) -> Contrast:
    """Train on freshly distorted images of `digits` only; returns the averaged weights."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = Contrast(recipe)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / recipe.warmup_steps) * (1 + math.cos(math.pi * step / recipe.steps)) / 2
        ),
    )
    images, labels = tower_images(digits), torch.from_numpy(digits.labels)
    progress = Progress("vision tower", recipe.steps)
    for _ in range(recipe.steps):
        rows = torch.randint(len(labels), (recipe.batch_size,), generator=generator)
        scores = model(distort(images[rows], generator))
        loss = F.cross_entropy(scores.flatten(0, 1), labels[rows].repeat(2))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        progress.add(note=f"loss {loss.item():.3f}")
    kept = average.module
    assert isinstance(kept, Contrast)
    return kept.eval()


@torch.no_grad()
def accuracy(model: Contrast, digits: Digits) -> float:
    """Measure how many images score highest, by their patches, with the word of their own digit."""
    guesses = model(tower_images(digits))[1].argmax(dim=-1)
    return (guesses == torch.from_numpy(digits.labels)).float().mean().item()


def save_tower(model: Contrast, folder: Path) -> None:
    """Write the vision half as an ordinary CLIP folder."""
    model.tower.save_pretrained(folder)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    processor.save_pretrained(folder)


def make_tower(folder: Path, recipe: TowerRecipe | None = None, train: Digits | None = None) -> None:
    """Train a tower on the training half, or on other digits, and write it to a folder."""
    train = train or load_halves()[0]
    model = train_tower(train, recipe or TowerRecipe())
    print(f"  vision tower: {accuracy(model, train):.1%} of the training images find their word", flush=True)
    save_tower(model, folder)


if __name__ == "__main__":
    make_tower(Path(sys.argv[1]))
