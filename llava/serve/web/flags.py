"""The flags of a page, which all programs with one have."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from llava.arguments import output_path
from llava.atomic import obstacle
from llava.constants import LOGDIR
from llava.utils import UserError, check_whole, import_optional, shortened

CONCURRENCY = 16


@dataclass(frozen=True)
class PageFlags:
    """Checked flags of a page. log_dir: None writes no log."""

    concurrency_count: int
    embed: bool
    moderate: bool
    share: bool
    log_dir: str | None
    reload_models: bool = False


def add_page_flags(parser: argparse.ArgumentParser) -> None:
    """Add the reference's flags of the page, and those of its log."""
    parser.add_argument(
        "--concurrency-count",
        type=int,
        default=CONCURRENCY,
        help=f"answers that the page asks for at a time (default: {CONCURRENCY})",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="let the internet reach the page, through a tunnel of gradio's; needs a key",
    )
    parser.add_argument(
        "--moderate",
        action="store_true",
        help="let OpenAI's moderation service judge each question first; needs OPENAI_API_KEY",
    )
    parser.add_argument(
        "--embed",
        action="store_true",
        help="no title and notes, and other sites may show the page in a frame",
    )
    parser.add_argument(
        "--log-dir",
        type=output_path,
        default=LOGDIR,
        help="folder of {date}-conv.json, which conversations and votes are written to (default: this one)",
    )
    parser.add_argument(
        "--no-log", action="store_true", help="write no conversations; answers cannot be voted on then"
    )


def read_page_flags(args: argparse.Namespace, *, reload_models: bool = False) -> PageFlags:
    """Check the flags of `add_page_flags`. Raises UserError."""
    check_whole("--concurrency-count", args.concurrency_count, 1)
    if args.moderate and not os.environ.get("OPENAI_API_KEY"):
        raise UserError(
            "--moderate needs an OpenAI key, but the environment variable OPENAI_API_KEY is not set; set it "
            "or leave --moderate out"
        )
    if args.share and args.api_key is None:
        raise UserError(
            "--share lets the internet reach this server, which needs a key: set LLAVA_API_KEY (or --api-key)"
        )
    if not args.no_log and (reason := obstacle(args.log_dir, folder=True)):
        raise UserError(
            f"--log-dir is {shortened(args.log_dir)}: {reason}; name another folder, or --no-log for no log"
        )
    import_optional("gradio", needed_for="the web page", install="llava[serve]")
    return PageFlags(
        args.concurrency_count,
        args.embed,
        args.moderate,
        args.share,
        None if args.no_log else args.log_dir,
        reload_models,
    )
