"""LLaVA's checkpoints to those of transformers and back: `python -m llava.model.convert_hf to-hf|from-hf`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from llava.model.builder import best_device, resolve_dtype
from llava.model.conversion.from_hf import from_hf
from llava.model.conversion.mmproj import write_mmproj
from llava.model.conversion.parity import ParityError, Report, Settings
from llava.model.conversion.to_hf import to_hf
from llava.model.tools.usage import ExampleParser
from llava.utils import UserError, run_program

__all__ = ["from_hf", "main", "to_hf", "write_mmproj"]


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
    both.add_argument("src", metavar="SRC", help="folder or hub name of the checkpoint to read")
    both.add_argument(
        "dst", metavar="DST", help="folder to write; it appears when it is whole and was compared"
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
    to.add_argument("--model-base", help="base model of a LoRA or projector-only checkpoint")
    back = commands.add_parser("from-hf", parents=[both], help="transformers to LLaVA", examples=(FROM_HF,))
    back.add_argument(
        "--vision-tower",
        help="name of the vision tower to write into config.json (folder or hub name). Default: a folder "
        "vision_tower in DST with the weights of SRC",
    )
    back.add_argument(
        "--image-aspect-ratio",
        choices=("pad", "square"),
        help="how LLaVA brings pictures to a square; default: as the processor of SRC does",
    )
    gguf = commands.add_parser(
        "mmproj",
        help="vision tower and projector of a llava-hf folder for llama.cpp",
        examples=(MMPROJ,),
    )
    gguf.add_argument("src", metavar="SRC", help="llava-hf folder to read")
    gguf.add_argument("dst", metavar="DST", help="GGUF file to write")
    gguf.add_argument("--dtype", default="float16", help="of the matrices: float16 or float32")
    return parser


def _dtype(name: str | None) -> torch.dtype | None:
    dtype = resolve_dtype(name, {})
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"dtype is {name!r}; expected float16, bfloat16 or float32.")
    return dtype


def main() -> None:
    """Parse the command line and convert."""
    args = _parser().parse_args()
    if args.command == "mmproj":
        count = write_mmproj(args.src, args.dst, dtype=_dtype(args.dtype))
        sys.stdout.write(f"wrote {count} tensors to {args.dst}\n")
        return
    if args.max_shard_gb <= 0:
        raise UserError(f"--max-shard-gb is {args.max_shard_gb}; expected a size above 0.")
    device = best_device() if args.device == "auto" else args.device
    parity_dtype = _dtype(args.parity_dtype)
    assert parity_dtype is not None
    common = {
        "dtype": _dtype(args.dtype),
        "conv_mode": args.conv_mode,
        "max_shard_bytes": int(args.max_shard_gb * 1e9),
        "overwrite": args.overwrite,
        "parity": None if args.no_parity else Settings(parity_dtype, device),
    }
    try:
        if args.command == "to-hf":
            report = to_hf(args.src, args.dst, base=args.model_base, **common)
        else:
            report = from_hf(
                args.src, args.dst, vision_tower=args.vision_tower, aspect=args.image_aspect_ratio, **common
            )
    except ParityError as error:
        _say(error.report, f"{args.dst} was not written: the models differ.")
        sys.exit(1)
    _say(report, f"wrote {Path(args.dst)}")


def _say(report: Report | None, last: str) -> None:
    lines = report.lines() if report else ["parity: not checked (--no-parity); nothing is proven"]
    sys.stdout.write("\n".join([*lines, last]) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_program(main)
