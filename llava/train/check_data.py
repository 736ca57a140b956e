"""The data doctor: python -m llava.train.check_data names every record that cannot be trained on, and why.

The command line only; the checks are in llava/train/data and are imported when there is something to check.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.arguments import ProgramParser, local_path, output_path
from llava.train.labels import LABEL_MASKS
from llava.utils import UserError, run_program

MOST_WORKERS = 1024
NO_EMPTY = ("data_path", "data_cache_dir", "model_name_or_path", "vision_tower")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = ProgramParser(
        allow_abbrev=False,
        prog="python -m llava.train.check_data",
        description="Check training data before the first step. Exit code: 0 no fault, 1 faults, 2 usage.",
    )
    add = parser.add_argument
    add(
        "--data_path",
        type=local_path,
        required=True,
        help=".json, .jsonl (or .gz of either), .parquet, {a,b}.json, a folder or pattern, or a mixture",
    )
    add("--image_folder", type=local_path, help="folder that image names are relative to")
    _add_video_flags(parser)
    add(
        "--allow_images_outside_folder",
        type=_boolean,
        default=False,
        metavar="True|False",
        help="images may lie outside of --image_folder",
    )
    add("--data_cache_dir", type=local_path, help="folder for the table that large data is converted to")
    add(
        "--model_name_or_path",
        type=local_path,
        help="model whose tokenizer counts tokens; without one they are not counted",
    )
    add("--version", default="v1", help="conversation template (default: %(default)s)")
    add("--model_max_length", type=int, default=2048, help="tokens of a sample (default: %(default)s)")
    add(
        "--vision_tower",
        type=local_path,
        help="CLIP folder or hub name; without one an image counts as one token",
    )
    add("--image_aspect_ratio", default="square", help="square, pad, anyres or anyres_max_N")
    add(
        "--image_grid_pinpoints",
        help="tile grids of anyres, [[336,672],[672,336]] or (1x1),...,(6x6); by default the model's",
    )
    add("--mm_patch_merge_type", default="flat", help="flat, spatial, spatial_unpad ..., as in training")
    add("--mm_spatial_pool_mode", help="how frames are pooled; this and the next two: the model's by default")
    add("--mm_spatial_pool_stride", type=int, help="patches that are pooled to one, along an edge")
    add("--mm_newline_position", help="where a video has newlines")
    add("--mm_vision_select_feature", default="patch", choices=("patch", "cls_patch"))
    add(
        "--mm_vision_select_layer",
        type=int,
        help="hidden layer of the tower; by default the model's",
    )
    add("--mm_vision_resolution", type=int, help="pixels that the tower is given; by default the model's")
    add("--mm_projector_type", help="kind of projector, which may make fewer tokens; by default the model's")
    add("--label_masks", choices=LABEL_MASKS, help="how answers are found; by default as training chooses")
    add("--mm_use_im_start_end", type=_boolean, default=False, metavar="True|False")
    add("--workers", type=int, help="processes (default: one for each core, if there is enough to do)")
    add(
        "--fix",
        type=output_path,
        metavar="OUT",
        help="write the records without a fault to this new .json or .jsonl file",
    )
    add("--json", type=output_path, metavar="REPORT", help="write all findings to this file")
    return parser


def _add_video_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--video_folder", type=local_path, help="folder of videos; by default --image_folder")
    add("--video_fps", type=float, default=1.0, help="frames a second that are taken of a video file")
    add("--frames_upbound", type=int, default=0, help="most frames of a video (default: no limit)")
    for flag, text in (
        ("--force_sample", "take --frames_upbound frames of every video"),
        ("--add_time_instruction", "the question about a video tells where its frames lie"),
    ):
        add(flag, type=_boolean, default=False, metavar="True|False", help=text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def main(argv: Sequence[str] | None = None) -> None:
    """Check, report and end with an exit code. Raises UserError for what cannot be checked."""
    args = build_parser().parse_args(argv)
    if args.workers is not None and not 1 <= args.workers <= MOST_WORKERS:
        raise UserError(f"--workers is {args.workers}; expected at least 1, and at most {MOST_WORKERS}")
    from llava.train.checks import check_empty, check_sampling
    from llava.train.data.doctor import check

    check_empty(NO_EMPTY, vars(args))
    check_sampling(args.frames_upbound, args.video_fps, always=args.force_sample)

    check(args)


if __name__ == "__main__":
    run_program(main)
