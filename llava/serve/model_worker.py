"""A worker with a model: `python -m llava.serve.model_worker --controller http://... --model-path ...`.

It registers with the controller and answers what the controller sends. The command line only; the worker is
in llava/serve/workers/model.py, which is imported when one begins.
"""

from __future__ import annotations

import argparse
import logging

from llava.arguments import ProgramParser
from llava.serve.cli import add_compile_flag, add_loading_flags, check_model_path
from llava.serve.logs import set_up_logging
from llava.serve.sockets import bind
from llava.serve.workers.flags import add_worker_flags, read_worker_flags
from llava.utils import check_whole, lazy_names, run_program

logger = logging.getLogger(__name__)

# What loads torch is looked up when it is asked for.
__getattr__ = lazy_names(
    __name__,
    {
        "ModelWorker": "llava.serve.workers.model",
        "app": "llava.serve.workers.base",
        "heart_beat_worker": "llava.serve.workers.base",
        "worker_id": "llava.serve.workers.base",
    },
)


def build_parser() -> ProgramParser:
    """Build the parser of the command line: the reference's flags, --compile, --cache-mb and --api-key."""
    parser = ProgramParser(
        prog="python -m llava.serve.model_worker",
        description="Load a model and answer the requests that a controller sends; stop it with Ctrl-C.",
    )
    add_worker_flags(parser, port=21002)
    add_loading_flags(parser)
    add_compile_flag(parser)
    parser.add_argument("--model-name", default=None, help="name that it registers (default: the path's end)")
    parser.add_argument("--multi-modal", action="store_true", help="has no effect: the checkpoint tells")
    parser.add_argument(
        "--cache-mb", type=int, default=1024, help="memory for what later prompts may share (default: 1024)"
    )
    parser.add_argument("--use-flash-attn", action="store_true", help="use flash_attention_2")
    return parser


def main(args: argparse.Namespace) -> None:
    """Serve until the process is stopped. Raises UserError for what keeps the worker from starting."""
    check_model_path(args.model_path)
    if args.multi_modal:
        logger.warning("--multi-modal has no effect: the checkpoint tells whether it takes images")
    flags = read_worker_flags(args)
    check_whole("--cache-mb", args.cache_mb, 0)
    set_up_logging("info", secrets=(flags.api_key,))
    with bind(flags.host, flags.port) as listening:  # before a model is loaded for nothing
        from llava.serve.web_server import run_server  # loads uvicorn
        from llava.serve.workers import base, model  # load torch and transformers

        base.worker = model.ModelWorker(
            flags.controller_address,
            flags.address,
            base.worker_id,
            args.no_register,
            args.model_path,
            args.model_base,
            args.model_name,
            args.load_8bit,
            args.load_4bit,
            args.device,
            args.use_flash_attn,
            limit_model_concurrency=args.limit_model_concurrency,
            cache_bytes=args.cache_mb * 2**20,
            compile=args.compile,
            api_key=flags.api_key,
        )
        run_server(base.app, listening, api_key=flags.api_key)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
