"""LLaVA's checkpoints to those of transformers and back: `python -m llava.model.convert_hf to-hf|from-hf`."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from llava.arguments import local_path, output_path
from llava.model.tools.usage import ExampleParser
from llava.utils import lazy_names, run_program

if TYPE_CHECKING:
    from llava.model.conversion.from_hf import from_hf
    from llava.model.conversion.mmproj import write_mmproj
    from llava.model.conversion.to_hf import to_hf

__all__ = ["from_hf", "main", "to_hf", "write_mmproj"]

__getattr__ = lazy_names(
    __name__,
    {
        "from_hf": "llava.model.conversion.from_hf",
        "to_hf": "llava.model.conversion.to_hf",
        "write_mmproj": "llava.model.conversion.mmproj",
    },
)


PROGRAM = "python -m llava.model.convert_hf"
TO_HF = f"{PROGRAM} to-hf ./checkpoints/llava-v1.5-7b ./llava-v1.5-7b-hf"
WITH_BASE = f"{PROGRAM} to-hf ./checkpoints/llava-lora ./llava-hf --model-base lmsys/vicuna-7b-v1.5"
FROM_HF = f"{PROGRAM} from-hf ./llava-v1.5-7b-hf ./llava-v1.5-7b"
MMPROJ = f"{PROGRAM} mmproj ./llava-v1.5-7b-hf ./mmproj-f16.gguf"


def _parser() -> argparse.ArgumentParser:
    parser = ExampleParser(
        prog=PROGRAM,
        description="Convert LLaVA checkpoints to the format of transformers (llava-hf) and back. Ends with\n"
        "a comparison of the two models on the same image and dialog; exit code 1 when they differ.",
        examples=(TO_HF, WITH_BASE, FROM_HF, MMPROJ),
    )
    both = ExampleParser(add_help=False)
    both.add_argument(
        "src", type=local_path, metavar="SRC", help="folder or hub name of the checkpoint to read"
    )
    both.add_argument(
        "dst",
        type=output_path,
        metavar="DST",
        help="folder to write; it appears when it is whole and was compared",
    )
    both.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    both.add_argument(
        "--dtype", help="round weights to this dtype (float16, bfloat16, float32); default: as stored"
    )
    both.add_argument("--max-shard-gb", type=float, default=5.0, help="largest size of a weight file")
    both.add_argument(
        "--conv-mode", help="template of the dialogs; default: the one that fits the checkpoint"
    )
    both.add_argument(
        "--no-parity", action="store_true", help="do not compare the models: nothing is proven then"
    )
    both.add_argument(
        "--parity-dtype",
        default="float32",
        help="dtype of the comparison. float32 (4 bytes a weight, one model at a time) proves logits to "
        "1e-4; bfloat16 and float16 halve the memory and prove them to their own rounding only",
    )
    both.add_argument("--device", default="cpu", help="where the comparison runs: cpu, cuda, mps or auto")
    commands = parser.add_subparsers(dest="command", required=True, metavar="to-hf|from-hf|mmproj")
    to = commands.add_parser(
        "to-hf", parents=[both], help="LLaVA to transformers", examples=(TO_HF, WITH_BASE)
    )
    to.add_argument("--model-base", type=local_path, help="base model of a LoRA or projector-only checkpoint")
    back = commands.add_parser("from-hf", parents=[both], help="transformers to LLaVA", examples=(FROM_HF,))
    back.add_argument(
        "--vision-tower",
        type=local_path,
        help="name of the vision tower to write into config.json (folder or hub name). Default: a folder "
        "vision_tower in DST with the weights of SRC",
    )
    back.add_argument(
        "--image-aspect-ratio",
        choices=("pad", "square"),
        help="how LLaVA brings images to a square; default: as the processor of SRC does",
    )
    gguf = commands.add_parser(
        "mmproj",
        help="vision tower and projector of a llava-hf folder for llama.cpp",
        examples=(MMPROJ,),
    )
    gguf.add_argument("src", type=local_path, metavar="SRC", help="llava-hf folder to read")
    gguf.add_argument("dst", type=output_path, metavar="DST", help="GGUF file to write")
    gguf.add_argument("--dtype", default="float16", help="of the matrices: float16 or float32")
    return parser


def main() -> None:
    """Parse the command line and convert."""
    args = _parser().parse_args()
    from llava.model.conversion.command import run  # loads torch and transformers

    if status := run(args):
        sys.exit(status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(main)
