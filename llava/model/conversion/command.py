"""The work of `python -m llava.model.convert_hf`, once its command line is read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from llava.model.builder import best_device, resolve_dtype
from llava.model.conversion.from_hf import from_hf
from llava.model.conversion.mmproj import write_mmproj
from llava.model.conversion.parity import ParityError, Report, Settings
from llava.model.conversion.to_hf import to_hf
from llava.utils import UserError


def _dtype(name: str | None) -> torch.dtype | None:
    dtype = resolve_dtype(name, {})
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"dtype is {name!r}; expected float16, bfloat16 or float32.")
    return dtype


def run(args: argparse.Namespace) -> int:
    """Convert as the flags of llava.model.convert_hf ask; returns the exit status, 1 for unequal models."""
    if args.command == "mmproj":
        count = write_mmproj(args.src, args.dst, dtype=_dtype(args.dtype))
        sys.stdout.write(f"wrote {count} tensors to {args.dst}\n")
        return 0
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
        return 1
    _say(report, f"wrote {Path(args.dst)}")
    return 0


def _say(report: Report | None, last: str) -> None:
    lines = report.lines() if report else ["parity: not checked (--no-parity); nothing is proven"]
    sys.stdout.write("\n".join([*lines, last]) + "\n")
