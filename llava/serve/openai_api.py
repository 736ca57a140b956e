"""Serve models to OpenAI's clients: `python -m llava.serve.openai_api --model-path ...`, or with
`--controller-address ...` those of a controller's workers.

The command line only; the application is in llava/serve/openai and is imported when one begins.
`llava.serve.openai_api.create_app(engine, settings)` gives it to other programs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.arguments import ProgramParser
from llava.serve.auth import KEY_VARIABLE, check_binding, is_loopback, read_api_key
from llava.serve.cli import add_model_flags, check_model_path
from llava.serve.limits import Limits
from llava.serve.sockets import check_address
from llava.utils import UserError, check_whole, import_optional, lazy_names, run_program

__getattr__ = lazy_names(
    __name__,
    {
        "ServedModel": "llava.serve.openai.settings",
        "ServerSettings": "llava.serve.openai.settings",
        "create_app": "llava.serve.openai.app",
    },
)

# Requests a minute of one client, where other machines may ask.
DEFAULT_RATE = 600
MIB = 2**20


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = ProgramParser(
        prog="python -m llava.serve.openai_api",
        description="Serve a model, or those of a controller, to OpenAI's clients, many answers at once: "
        "/v1/chat/completions, /v1/responses, /v1/completions, /v1/models, /health, /metrics.",
    )
    add_model_flags(parser)
    parser.add_argument(
        "--controller-address",
        default=None,
        metavar="URL",
        help="serve the models that are registered at this controller, instead of one of its own",
    )
    parser.add_argument(
        "--served-model-name",
        nargs="+",
        default=None,
        metavar="NAME",
        help="names that requests may give the model (default: that of the checkpoint)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; another than this machine's needs a key"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--api-key", default=None, help=f"key that every request has to bring; better set {KEY_VARIABLE}"
    )
    parser.add_argument(
        "--allow-remote-images",
        nargs="*",
        default=None,
        metavar="HOST",
        help="fetch images from http(s) addresses: of these hosts (*.example.org for all below one), or of "
        "any public one when none is named",
    )
    parser.add_argument("--max-images", type=int, default=16, help="images of one request (default: 16)")
    parser.add_argument(
        "--max-body-mb", type=int, default=64, help="largest request, images included (default: 64)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=1024,
        help="longest answer where a request names no length (default: 1024)",
    )
    parser.add_argument(
        "--rate-limit",
        type=int,
        default=None,
        help="requests a minute of one client; 0 is no limit (default: 0 for this machine alone, else "
        f"{DEFAULT_RATE})",
    )
    parser.add_argument("--max-running", type=int, default=8, help="answers at a time (default: 8)")
    parser.add_argument("--max-waiting", type=int, default=64, help="places in the queue (default: 64)")
    parser.add_argument(
        "--cache-mb", type=int, default=1024, help="memory for what later prompts may share (default: 1024)"
    )
    parser.add_argument(
        "--drain-seconds",
        type=int,
        default=30,
        help="how long answers may go on when the server is stopped (default: 30)",
    )
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"], help="(default: info)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises UserError for what keeps the server from starting."""
    args = build_parser().parse_args(argv)
    limits = prepare(args)
    from llava.serve.openai.launch import launch  # loads torch and transformers

    launch(args, limits)


def prepare(args: argparse.Namespace) -> Limits:
    """Check the flags before anything heavy is loaded; returns the limits that they set. Raises UserError."""
    _check_source(args)
    args.api_key = read_api_key(args.api_key)
    check_binding(args.host, args.api_key)
    _check_numbers(args)
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        import_optional(package, needed_for="the OpenAI-compatible server", install="llava[serve]")
    return limits_of(args)


# Flags of what only a model of this process has.
_OF_ONE_MODEL = (
    "model_base",
    "device",
    "dtype",
    "load_8bit",
    "load_4bit",
    "compile",
    "served_model_name",
    "max_running",
    "max_waiting",
    "cache_mb",
)


def _check_source(args: argparse.Namespace) -> None:
    """Raise UserError unless the flags name one source of answers, and nothing of the other."""
    if args.controller_address is None:
        check_model_path(args.model_path)
        for name in args.served_model_name or ():
            if not name.strip() or not name.isprintable():
                raise UserError(
                    f"--served-model-name holds {name!r}; expected names that clients can ask for"
                )
        return
    if args.model_path:
        raise UserError(
            "--model-path and --controller-address were both given; leave one out: a server answers with a "
            "model of its own, or with those of a controller's workers"
        )
    check_address("--controller-address", args.controller_address)
    defaults = vars(build_parser().parse_args([]))
    for name in _OF_ONE_MODEL:
        if vars(args)[name] != defaults[name]:
            raise UserError(
                f"--{name.replace('_', '-')} is for a model of this process; with --controller-address give "
                "it to the worker that has the model, and leave it out here"
            )


def limits_of(args: argparse.Namespace) -> Limits:
    """Return the limits that the flags set."""
    per_minute = args.rate_limit
    if per_minute is None:
        per_minute = 0 if is_loopback(args.host) else DEFAULT_RATE
    return Limits(max_body_bytes=args.max_body_mb * MIB, per_minute=per_minute or None)


def _check_numbers(args: argparse.Namespace) -> None:
    """Raise UserError for numbers that no server can keep to."""
    least = {
        "port": 0,
        "max_images": 0,
        "max_body_mb": 1,
        "max_tokens": 1,
        "rate_limit": 0,
        "max_running": 1,
        "max_waiting": 0,
        "cache_mb": 0,
        "drain_seconds": 0,
    }
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None:
            check_whole(f"--{name.replace('_', '-')}", value, smallest)


if __name__ == "__main__":
    run_program(main)
