"""A worker in front of an SGLang server: `python -m llava.serve.sglang_worker --sgl-endpoint http://...`.

SGLang runs the model in an environment of its own. The command line only; the worker is in
llava/serve/workers/sglang.py, which is imported when one begins.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from llava.arguments import ProgramParser
from llava.serve.logs import set_up_logging
from llava.serve.sockets import bind
from llava.serve.workers.flags import add_worker_flags, read_worker_flags
from llava.utils import UserError, run_program

# Names of this module that load torch: they are looked up when they are asked for.
_NAMES = ("ModelWorker", "app", "heart_beat_worker", "worker_id")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module("llava.serve.workers.sglang"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> ProgramParser:
    """Build the parser of the command line: the reference's flags, and --api-key."""
    parser = ProgramParser(
        prog="python -m llava.serve.sglang_worker",
        description="Answer the requests that a controller sends with an SGLang server; stop it with Ctrl-C.",
    )
    add_worker_flags(parser, port=21002)
    parser.add_argument("--sgl-endpoint", default=None, help="address of the SGLang server, http://host:port")
    parser.add_argument("--model-name", default=None, help="name that it registers (default: the model's)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Serve until the process is stopped. Raises UserError for what keeps the worker from starting."""
    if not args.sgl_endpoint:
        raise UserError(
            "--sgl-endpoint is missing; give the SGLang server's address, such as http://localhost:30000"
        )
    flags = read_worker_flags(args)
    set_up_logging("info", secrets=flags.secrets)
    with bind(flags.host, flags.port) as listening:
        from llava.serve.web_server import run_server  # loads uvicorn
        from llava.serve.workers import sglang  # loads torch

        sglang.worker = sglang.ModelWorker(
            flags.controller_address,
            flags.address,
            args.sgl_endpoint,
            sglang.worker_id,
            args.no_register,
            args.model_name,
            limit_model_concurrency=args.limit_model_concurrency,
            api_key=flags.api_key,
        )
        run_server(sglang.app, listening, api_key=flags.api_key)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
