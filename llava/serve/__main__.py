"""Chat with a model in the browser: `python -m llava.serve --model-path ...`.

Page, OpenAI-compatible API and engine run in one process. The flags are those of llava.serve.openai_api, and
those of the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.serve import openai_api
from llava.serve.web.flags import add_page_flags, read_page_flags
from llava.utils import UserError, run_program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = openai_api.build_parser()
    parser.prog = "python -m llava.serve"
    parser.description = (
        "Chat with a model in the browser, and serve it to OpenAI's clients: the page is at /, the API at "
        "/v1."
    )
    add_page_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises UserError for what keeps the server from starting."""
    args = build_parser().parse_args(argv)
    serve(args)


def serve(args: argparse.Namespace) -> None:
    """Serve what the flags of `build_parser` say. Raises UserError."""
    if args.controller_address is not None:
        raise UserError(
            "--controller-address is for llava.serve.openai_api; for a page in front of a controller start "
            "llava.serve.gradio_web_server --controller-url"
        )
    limits = openai_api.prepare(args)
    flags = read_page_flags(args)
    from llava.serve.web.launch_local import serve_local  # loads torch and gradio

    serve_local(args, flags, limits)


if __name__ == "__main__":
    run_program(main)
