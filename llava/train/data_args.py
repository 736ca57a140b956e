"""The flags of the data: where samples are, how images get the tower's size, which frames are taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llava.mm_utils import check_aspect_ratio
from llava.protocols import ImageProcessor
from llava.train.checks import check_choice, check_flag, check_sampling
from llava.train.data.skipped import POLICIES as BAD_SAMPLE_POLICIES
from llava.train.labels import LABEL_MASKS


def explained(default: object, text: str) -> Any:
    """A dataclass field with a default and a line for --help."""
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments:
    """Where the samples are, and how images are brought to the tower's size."""

    data_path: str | None = explained(
        None,
        "Records: .json, .jsonl (or .gz of either), .parquet, {a,b}.json, a folder, pattern or .yaml mixture",
    )
    lazy_preprocess: bool = explained(False, "Accepted; samples are always prepared when they are read")
    is_multimodal: bool = explained(False, "Accepted; true whenever --vision_tower is given")
    eval_data_path: str | None = explained(None, "Records to evaluate on, in the formats of --data_path")
    eval_split: float = explained(0.0, "Part of the records that is held out to evaluate on, such as 0.01")
    image_folder: str | None = explained(None, "Folder that image names of the data are relative to")
    video_folder: str | None = explained(None, "Folder of the data's videos; by default --image_folder")
    video_fps: float = explained(1.0, "Frames a second that are taken of a video file")
    frames_upbound: int = explained(
        0, "Most frames of a video; one that has more gives so many, evenly spread. 0: no limit"
    )
    force_sample: bool = explained(False, "Take --frames_upbound frames of every video, evenly spread")
    add_time_instruction: bool = explained(
        False, "Tell in front of a question about a video how long it is and where its frames lie"
    )
    allow_images_outside_folder: bool = explained(
        False, "Read images whose names lead out of --image_folder: ../x.png, or absolute elsewhere"
    )
    image_aspect_ratio: str = explained(
        "square", "square (crop), pad, anyres (tiles), or anyres_max_N (features of at most N tiles)"
    )
    image_grid_pinpoints: str | None = explained(
        None,
        'Tile grids of anyres in pixels, "[[336,672],[672,336]]", or in tiles, "(1x1),...,(6x6)"; by default '
        "those of the model",
    )
    data_cache_dir: str | None = explained(
        None, "Folder for the tables that large data is converted to, once; by default beside the data"
    )
    on_bad_sample: str = explained(
        "error",
        "error: stop at a sample that cannot be used; skip: take the next good one and tell at the end",
    )
    streaming: bool = explained(
        False, "Read samples with their images from .tar or .parquet shards as a stream; needs --max_steps"
    )
    shuffle_buffer: int = explained(1000, "Samples among which a stream is shuffled")
    label_masks: str | None = explained(
        None,
        "How answers are found: reference counts tokens, and loses a conversation that confuses it; spans "
        "does not; by default reference where it works",
    )

    # set by train() from the model, read by the dataset
    image_processor: ImageProcessor | None = field(default=None, init=False)
    mm_use_im_start_end: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_flag(check_aspect_ratio, self.image_aspect_ratio)
        check_sampling(self.frames_upbound, self.video_fps, always=self.force_sample)
        check_choice("on_bad_sample", self.on_bad_sample, BAD_SAMPLE_POLICIES)
        check_choice("label_masks", self.label_masks, (None, *LABEL_MASKS))
