"""Ask a model one question about images: `python -m llava.eval.run_llava` and `eval_model(args)`.

The command line and the images; the model is asked in llava/eval/run/question.py, which is imported then.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import Any

from PIL import Image

from llava.arguments import ProgramParser, any_path, local_path
from llava.images import load_image
from llava.protocols import QuestionArguments
from llava.utils import UserError, accept_any_text, run_program

__all__ = ["build_parser", "eval_model", "image_parser", "load_image", "load_images"]


def image_parser(args: QuestionArguments) -> list[str]:
    """Split args.image_file at args.sep (default ","); empty parts are kept."""
    return args.image_file.split(getattr(args, "sep", ","))


def load_images(image_files: Iterable[str]) -> list[Image.Image]:
    """Load images from paths or URLs as RGB. Raises ImageError for the first unreadable one."""
    return [load_image(one) for one in image_files]


def eval_model(args: QuestionArguments, model: tuple[Any, Any, Any, int] | None = None) -> str:
    """Print and return the answer to args.query about the images of args.image_file.

    args: any object with the fields model_path, query and image_file, and as wanted model_base, model_name,
    conv_mode, sep, temperature, top_p, num_beams, max_new_tokens, seed, device (default: as on the command
    line).
    `<image-placeholder>` (or `<image>`) in the query says where an image goes, else the images go in front.
    model: what load_pretrained_model returned, to ask without loading again; args.model_path still names it.
    Raises UserError (ImageError) for settings, images and prompts that cannot be used.
    """
    return _answer(args, model, quiet=False)


def _answer(args: QuestionArguments, model: tuple[Any, Any, Any, int] | None, *, quiet: bool) -> str:
    """Print and return the answer; `quiet` silences other libraries, which only a program may do."""
    if model is None and not args.model_path:
        raise UserError(
            "--model-path is missing; give the folder of a LLaVA checkpoint or its name on the hub, "
            "for example: --model-path liuhaotian/llava-v1.5-7b"
        )
    # before torch and the model: a wrong path should not take minutes to show
    images = load_images([os.path.expanduser(one) for one in image_parser(args)])
    from llava.eval.run.question import ask  # loads torch and transformers

    answer = ask(args, images, model, quiet=quiet)
    print(answer)
    return answer


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line: the reference's flags, and --device and --seed."""
    parser = ProgramParser(
        prog="python -m llava.eval.run_llava", description="Ask one question about images."
    )
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
        "--image-file", type=any_path, required=True, help="paths or http(s) URLs, separated by --sep"
    )
    parser.add_argument(
        "--query", required=True, help="the question; <image-placeholder> marks an image's place"
    )
    parser.add_argument(
        "--conv-mode", default=None, help="prompt template (default: chosen from the checkpoint)"
    )
    parser.add_argument("--sep", default=",", help="what separates several images (default: a comma)")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (default: 0.2)")
    parser.add_argument(
        "--top_p", type=float, default=None, help="keep the likeliest tokens of this total share"
    )
    parser.add_argument(
        "--num_beams", type=int, default=1, help="width of the beam search (default: 1, none)"
    )
    parser.add_argument("--max_new_tokens", type=int, default=512, help="longest answer (default: 512)")
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:N or mps (default: the best one present)"
    )
    parser.add_argument("--seed", type=int, default=None, help="makes random answers repeatable")
    return parser


def _run() -> None:
    accept_any_text()
    _answer(build_parser().parse_args(), None, quiet=True)


if __name__ == "__main__":
    run_program(_run)
