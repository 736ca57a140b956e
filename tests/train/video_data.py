"""Records with a video and the files they name, for the tests of training on videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recorded_training import sample_image
from test_video import write_video

import llava
from llava.train.plan import DataSettings

ANSWER = {"from": "gpt", "value": "They go away."}


def ask(text: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": text}, ANSWER]


def record(video: Any, text: str = "<video>\nWhat happens?", **more: Any) -> dict[str, Any]:
    return {"video": video, "conversations": ask(text), **more}


def load_model_of_tiles(checkpoints: Path) -> Any:
    """Load the tiny v1.6 for dialogs of up to 4,000 tokens."""
    model = llava.load(checkpoints / "llava-tiny-v1.6", device="cpu", dtype="float32")
    model.model.config.tokenizer_model_max_length = 4000
    model.model.config.max_position_embeddings = 4000
    return model


def write_media(folder: Path) -> Path:
    """Write a clip of 45 frames in 4.5 seconds, a folder of 6 frames, an image, and what is no video."""
    write_video(folder / "clip.mp4")
    (folder / "frames").mkdir()
    for index in range(6):
        sample_image(40, 30, index).save(folder / "frames" / f"f{index}.png")
    sample_image(40, 30, 9).save(folder / "p.png")
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:2000])
    (folder / "none.mp4").write_bytes(b"")
    (folder / "bare").mkdir()
    return folder


def settings_of(assistant: Any, folder: Path, **fields: Any) -> DataSettings:
    config = assistant.model.config
    return DataSettings(
        is_multimodal=True, image_processor=assistant.image_processor, image_folder=str(folder),
        image_aspect_ratio=config.image_aspect_ratio, image_grid_pinpoints=config.image_grid_pinpoints,
        **fields,
    )  # fmt: skip
