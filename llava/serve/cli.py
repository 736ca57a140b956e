"""Chat with a model in the terminal: `python -m llava.serve.cli --model-path ... [--image-file ...]`.

The command line only; the chat is in llava/serve/terminal.py and is imported when one begins.
"""

from __future__ import annotations

import argparse

from PIL import Image

from llava.arguments import ProgramParser, any_path, local_path
from llava.images import load_image
from llava.utils import UserError, accept_any_text, run_program
from llava.video import Sampling, Video, read_video

__all__ = [
    "add_compile_flag",
    "add_loading_flags",
    "add_model_flags",
    "build_parser",
    "check_model_path",
    "load_image",
    "main",
]


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """Add the reference's flags that say which model is loaded and how; all programs that talk have them."""
    parser.add_argument(
        "--model-path",
        type=local_path,
        default=None,
        help="folder or hub name of the checkpoint; has to be given",
    )
    parser.add_argument(
        "--model-base",
        type=local_path,
        default=None,
        help="base model of a LoRA or projector-only checkpoint",
    )
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:N or mps (default: the best one present)"
    )
    parser.add_argument("--load-8bit", action="store_true", help="quantise to 8 bits while loading")
    parser.add_argument("--load-4bit", action="store_true", help="quantise to 4 bits while loading")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of loading, and those of programs that choose template, dtype and compilation."""
    add_loading_flags(parser)
    parser.add_argument(
        "--conv-mode", default=None, help="prompt template (default: chosen from the checkpoint)"
    )
    parser.add_argument(
        "--dtype",
        default=None,
        choices=["float32", "bfloat16", "float16"],
        help="number format of the weights (default: one that is fast on the device)",
    )
    add_compile_flag(parser)


def add_compile_flag(parser: argparse.ArgumentParser) -> None:
    """Add --compile, of programs whose answers may run compiled."""
    parser.add_argument(
        "--compile", action="store_true", help="compile the decoding step: a slow start, then faster answers"
    )


def check_model_path(path: str | None) -> str:
    """Return --model-path. Raises UserError when it was not given."""
    if not path:
        raise UserError(
            "--model-path is missing; give the folder of a LLaVA checkpoint or its name on the hub, "
            "for example: --model-path liuhaotian/llava-v1.5-7b"
        )
    return path


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line: the reference's flags, --top-p, --seed, --dtype and --compile."""
    parser = ProgramParser(
        prog="python -m llava.serve.cli",
        description="Chat about an image. Ctrl-C stops an answer; /exit, an empty line or Ctrl-D ends the "
        "program; /help lists what else can be typed. Questions may also be piped in, one a line; stdout "
        "then holds nothing but the dialog.",
    )
    add_model_flags(parser)
    parser.add_argument(
        "--image-file",
        type=any_path,
        default=None,
        help="path or http(s) URL; goes with the first question (or later, with /image)",
    )
    parser.add_argument(
        "--video-file",
        type=any_path,
        default=None,
        help="video, or folder of its frames as images; goes with the first question",
    )
    parser.add_argument(
        "--frames", type=int, default=32, help="most frames of a video, 0: no limit (default: 32)"
    )
    parser.add_argument("--fps", type=float, default=1.0, help="frames taken of a second (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (default: 0.2)")
    parser.add_argument(
        "--top-p", type=float, default=None, help="keep the likeliest tokens of this total share"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: 512)")
    parser.add_argument("--seed", type=int, default=None, help="makes random answers repeatable")
    parser.add_argument("--debug", action="store_true", help="show library messages and every prompt")
    return parser


def main(args: argparse.Namespace) -> None:
    """Chat until the input ends. Raises UserError for what keeps the program from starting.

    `args` may lack flags, such as those that the reference does not have.
    """
    args = argparse.Namespace(**{**vars(build_parser().parse_args([])), **vars(args)})
    check_model_path(args.model_path)
    # before torch and the model: a wrong path should not take minutes to show
    if args.image_file and args.video_file:
        raise UserError("--image-file and --video-file were both given; give one of them")
    image: Image.Image | Video | None = load_image(args.image_file) if args.image_file else None
    if args.video_file:
        image = read_video(args.video_file, Sampling(args.frames, args.fps))
    from llava.serve.terminal import open_chat  # loads torch and transformers

    open_chat(args, image).run()


def _run() -> None:
    accept_any_text()
    main(build_parser().parse_args())


if __name__ == "__main__":
    run_program(_run)
