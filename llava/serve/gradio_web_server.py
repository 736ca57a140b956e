"""The web page: `python -m llava.serve.gradio_web_server --controller http://...`, or `--local --model-path`.

The command line only; the page is in llava/serve/web and is imported when one begins.
"""

from __future__ import annotations

import argparse

import llava.serve.__main__ as one_process
from llava.arguments import ProgramParser
from llava.serve.auth import check_binding, is_loopback, read_api_key
from llava.serve.cli import add_model_flags
from llava.serve.limits import Limits
from llava.serve.openai_api import DEFAULT_RATE
from llava.serve.sockets import check_address
from llava.serve.web.flags import add_page_flags, read_page_flags
from llava.utils import UserError, check_whole, import_optional, lazy_names, run_program

# Names of the reference's module; what loads gradio is looked up when it is asked for.
__getattr__ = lazy_names(
    __name__,
    {
        "PageEvents": "llava.serve.web.events",
        "block_css": "llava.serve.web.looks",
        "build_demo": "llava.serve.web.demo",
        "get_conv_log_filename": "llava.serve.web.log",
        "get_model_list": "llava.serve.web.demo",
        "learn_more_markdown": "llava.serve.web.looks",
        "title_markdown": "llava.serve.web.looks",
        "tos_markdown": "llava.serve.web.looks",
    },
)

PORT = 7860


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line: the reference's flags, and those of --local."""
    parser = ProgramParser(
        prog="python -m llava.serve.gradio_web_server",
        description="A page to chat with the models of a controller's workers or, with --local, with a model "
        "in this process.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; another than this machine's needs a key"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one (default: {PORT})")
    parser.add_argument(
        "--controller-url", default="http://localhost:21001", help="default: http://localhost:21001"
    )
    parser.add_argument(
        "--model-list-mode",
        default="once",
        choices=["once", "reload"],
        help="ask the controller for its models once, or whenever the page is opened (default: once)",
    )
    add_page_flags(parser)
    parser.add_argument(
        "--api-key", default=None, help="key of the page, and of the controller (or LLAVA_API_KEY)"
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="no controller: answer with the model of --model-path, and serve its API under /v1 as well",
    )
    add_model_flags(parser)
    return parser


# What only one of the two sources of answers has.
_OF_A_MODEL = (
    *("model_path", "model_base", "device", "dtype"),
    *("load_8bit", "load_4bit", "conv_mode", "compile"),
)
_OF_A_CONTROLLER = ("controller_url", "model_list_mode")


def _check_source(args: argparse.Namespace) -> None:
    """Raise UserError for a flag of the other source of answers than the one that is asked for."""
    defaults = vars(build_parser().parse_args([]))
    for name in _OF_A_CONTROLLER if args.local else _OF_A_MODEL:
        flag = f"--{name.replace('_', '-')}"
        if vars(args)[name] == defaults[name]:
            continue
        if args.local:
            raise UserError(f"{flag} is for a page in front of a controller; leave it out with --local")
        raise UserError(
            f"{flag} is for --local; without it the page shows the models of the controller's workers"
        )


def main(args: argparse.Namespace) -> None:
    """Serve until the process is stopped. Raises UserError for what keeps the page from starting."""
    args = argparse.Namespace(**{**vars(build_parser().parse_args([])), **vars(args)})
    _check_source(args)
    if args.local:
        # whatever has no flag here has its default of the server
        return one_process.serve(
            argparse.Namespace(**{**vars(one_process.build_parser().parse_args([])), **vars(args)})
        )
    args.api_key = read_api_key(args.api_key)
    check_binding(args.host, args.api_key)
    check_whole("--port", args.port, 0)
    check_address("--controller-url", args.controller_url)
    flags = read_page_flags(args, reload_models=args.model_list_mode == "reload")
    for package in ("fastapi", "uvicorn"):
        import_optional(package, needed_for="the web page", install="llava[serve]")
    from llava.serve.web.launch import serve_page  # loads gradio

    serve_page(args, flags, Limits(per_minute=None if is_loopback(args.host) else DEFAULT_RATE))


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
