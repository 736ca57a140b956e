"""A worker in front of an SGLang server: `python -m llava.serve.sglang_worker --sgl-endpoint http://...`.

SGLang runs the model in an environment of its own. The command line only; the worker is in
llava/serve/workers/sglang.py, which is imported when one begins.
"""

from __future__ import annotations

import argparse

from llava.arguments import ProgramParser
from llava.serve.logs import set_up_logging
from llava.serve.sockets import bind, check_address
from llava.serve.workers.flags import add_worker_flags, read_worker_flags
from llava.utils import UserError, lazy_names, run_program

# What loads torch is looked up when it is asked for.
__getattr__ = lazy_names(
    __name__,
    {
        "ModelWorker": "llava.serve.workers.sglang",
        "app": "llava.serve.workers.base",
        "heart_beat_worker": "llava.serve.workers.base",
        "worker_id": "llava.serve.workers.base",
    },
)


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
    check_address("--sgl-endpoint", args.sgl_endpoint)
    flags = read_worker_flags(args)
    set_up_logging("info", secrets=(flags.api_key,))
    with bind(flags.host, flags.port) as listening:
        from llava.serve.web_server import run_server  # loads uvicorn
        from llava.serve.workers import base, sglang  # load torch

        base.worker = sglang.ModelWorker(
            flags.controller_address,
            flags.address,
            args.sgl_endpoint,
            base.worker_id,
            args.no_register,
            args.model_name,
            limit_model_concurrency=args.limit_model_concurrency,
            api_key=flags.api_key,
        )
        run_server(base.app, listening, api_key=flags.api_key)


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
