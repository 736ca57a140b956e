"""Ask a model one question about images: `python -m llava.eval.run_llava` and `eval_model(args)`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from PIL import Image

from llava.inference.chat import ChatSession
from llava.inference.loading import LoadedModel, open_model
from llava.inference.program import accept_any_text, quiet_libraries
from llava.inference.prompt import pick_conv_mode
from llava.inference.sampling import SamplingParams
from llava.mm_utils import get_model_name_from_path, load_image
from llava.utils import disable_torch_init, run_program

__all__ = ["build_parser", "eval_model", "image_parser", "load_image", "load_images"]


def image_parser(args: Any) -> list[str]:
    """Split args.image_file at args.sep (default ","); empty parts are kept."""
    return args.image_file.split(getattr(args, "sep", ","))


def load_images(image_files: Iterable[str]) -> list[Image.Image]:
    """Load pictures from paths or URLs as RGB. Raises ImageError for the first unreadable one."""
    return [load_image(one) for one in image_files]


def eval_model(args: Any, model: tuple[Any, Any, Any, int] | None = None) -> str:
    """Print and return the answer to args.query about the images of args.image_file.

    args: any object with the fields model_path, query and image_file, and as wanted model_base, model_name,
    conv_mode, sep, temperature, top_p, num_beams, max_new_tokens, seed, device (default: as on the command
    line).
    `<image-placeholder>` (or `<image>`) in the query says where an image goes, else the images go in front.
    model: what load_pretrained_model returned, to ask without loading again; args.model_path still names it.
    Raises UserError (ImageError) for settings, images and prompts that cannot be used.
    """

    def field(name: str, default: Any = None) -> Any:
        return getattr(args, name, default)

    disable_torch_init()
    params = SamplingParams(
        temperature=field("temperature", 0.2),
        top_p=field("top_p"),
        num_beams=field("num_beams", 1),
        max_new_tokens=field("max_new_tokens", 512),
        seed=field("seed"),
    )
    images = load_images(image_parser(args))  # before the model: a wrong path should not take minutes to show
    name = field("model_name") or get_model_name_from_path(args.model_path)
    if model is None:
        model = open_model(args.model_path, field("model_base"), name, device=field("device"))
    loaded = LoadedModel(*model)
    template, _ = pick_conv_mode(field("conv_mode"), name, loaded.model.config)
    session = ChatSession(loaded.tokenizer, loaded.model, loaded.image_processor, template=template)
    answer = session.ask(args.query, images, params)
    print(answer)
    return answer


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line: the reference's flags, and --device and --seed."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.run_llava", description="Ask one question about images."
    )
    parser.add_argument(
        "--model-path", default="facebook/opt-350m", help="folder or hub name of the checkpoint"
    )
    parser.add_argument(
        "--model-base", default=None, help="base model of a LoRA or projector-only checkpoint"
    )
    parser.add_argument("--image-file", required=True, help="paths or http(s) URLs, separated by --sep")
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
    quiet_libraries()
    eval_model(build_parser().parse_args())


if __name__ == "__main__":
    run_program(_run)
