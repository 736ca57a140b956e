"""Registers a running worker with a controller: `python -m llava.serve.register_worker`."""

from __future__ import annotations

import argparse

from llava.arguments import ProgramParser
from llava.serve.auth import read_api_key
from llava.serve.workers.client import call
from llava.utils import UserError, run_program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = ProgramParser(
        prog="python -m llava.serve.register_worker",
        description="Tell a controller of a worker that was started with --no-register.",
    )
    parser.add_argument("--controller-address", required=True, help="for example http://localhost:21001")
    parser.add_argument("--worker-name", required=True, help="the worker's address, http://host:port")
    parser.add_argument(
        "--check-heart-beat", action="store_true", help="drop the worker when its heart beats end"
    )
    parser.add_argument("--api-key", default=None, help="key of the controller (or LLAVA_API_KEY)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Register the worker. Raises UserError when the controller refuses or cannot be reached."""
    content = {
        "worker_name": args.worker_name,
        "check_heart_beat": args.check_heart_beat,
        "worker_status": None,
    }
    key = read_api_key(args.api_key)
    call(args.controller_address, "/register_worker", content, api_key=key)
    # that answer is the same where the worker could not be reached: a heart beat tells whether it is known
    beat = {"worker_name": args.worker_name, "queue_length": 0}
    if not call(args.controller_address, "/receive_heart_beat", beat, api_key=key)["exist"]:
        raise UserError(
            f"the controller at {args.controller_address} did not take {args.worker_name} in: it got no "
            "status from there; is the worker running, and reached from the controller at this address?"
        )


if __name__ == "__main__":
    run_program(lambda: main(build_parser().parse_args()))
