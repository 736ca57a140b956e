"""Asks a model in the format of transformers about images, without llava: questions in, answers out, as JSON.

python -m playground.digits.plain_transformers MODEL_FOLDER IMAGE_FOLDER < questions.json > answers.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

MAX_NEW_TOKENS = 8


@torch.inference_mode()
def answer(model_folder: str, images: Path, questions: list[dict[str, str]]) -> list[str]:
    """Answer questions, each a text and the name of an image, one by one and greedily."""
    processor = AutoProcessor.from_pretrained(model_folder)
    model = LlavaForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).eval()
    said = []
    for question in questions:
        content = [{"type": "image"}, {"type": "text", "text": question["question"]}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        with Image.open(images / question["image"]) as image:
            inputs = processor(images=image.convert("RGB"), text=prompt, return_tensors="pt")
        new_ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        start = inputs["input_ids"].shape[1]
        said.append(processor.decode(new_ids[0, start:], skip_special_tokens=True).strip())
    return said


if __name__ == "__main__":
    answers = answer(sys.argv[1], Path(sys.argv[2]), json.load(sys.stdin))
    assert "llava" not in sys.modules  # transformers alone
    json.dump(answers, sys.stdout)
