"""A worker with a model: `python -m llava.serve.model_worker --controller http://... --model-path ...`.

It registers with the controller and answers what the controller sends. The command line only; the worker is
in llava/serve/workers/model.py, which is imported when one begins.
"""

from __future__ import annotations

import argparse
import importlib
import logging
from typing import Any

from llava.arguments import ProgramParser, local_path
from llava.serve.logs import set_up_logging
from llava.serve.sockets import bind
from llava.serve.workers.flags import add_worker_flags, read_worker_flags
from llava.utils import UserError, run_program

logger = logging.getLogger(__name__)

# Names of this module that load torch: they are looked up when they are asked for.
_NAMES = ("ModelWorker", "app", "heart_beat_worker", "worker_id")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module("llava.serve.workers.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> ProgramParser:
    """Build the parser of the command line: the reference's flags, and --api-key."""
    parser = ProgramParser(
        prog="python -m llava.serve.model_worker",
        description="Load a model and answer the requests that a controller sends; stop it with Ctrl-C.",
    )
    add_worker_flags(parser, port=21002)
    parser.add_argument(
        "--model-path", type=local_path, default=None, help="folder or hub name of the checkpoint"
    )
    parser.add_argument(
        "--model-base",
        type=local_path,
        default=None,
        help="base model of a LoRA or projector-only checkpoint",
    )
    parser.add_argument("--model-name", default=None, help="name that it registers (default: the path's end)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:N or mps (default: the best one)")
    parser.add_argument("--multi-modal", action="store_true", help="has no effect: the checkpoint tells")
    parser.add_argument("--load-8bit", action="store_true", help="quantise to 8 bits while loading")
    parser.add_argument("--load-4bit", action="store_true", help="quantise to 4 bits while loading")
    parser.add_argument("--use-flash-attn", action="store_true", help="use flash_attention_2")
    return parser


def main(args: argparse.Namespace) -> None:
    """Serve until the process is stopped. Raises UserError for what keeps the worker from starting."""
    if not args.model_path:
        raise UserError(
            "--model-path is missing; give the folder of a LLaVA checkpoint or its name on the hub, "
            "for example: --model-path liuhaotian/llava-v1.5-7b"
        )
    if args.multi_modal:
        logger.warning("--multi-modal has no effect: the checkpoint tells whether it takes images")
    flags = read_worker_flags(args)
    set_up_logging("info", secrets=flags.secrets)
    with bind(flags.host, flags.port) as listening:  # before a model is loaded for nothing
        from llava.serve.web_server import run_server  # loads uvicorn
        from llava.serve.workers import model  # loads torch and transformers

        model.worker = model.ModelWorker(
            flags.controller_address,
            flags.address,
            model.worker_id,
            args.no_register,
            args.model_path,
            args.model_base,
            args.model_name,
            args.load_8bit,
            args.load_4bit,
            args.device,
            args.use_flash_attn,
            limit_model_concurrency=args.limit_model_concurrency,
            api_key=flags.api_key,
        )
        run_server(model.app, listening, api_key=flags.api_key)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
