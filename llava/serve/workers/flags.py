"""The flags that workers share: where they listen, how others reach them, and their controller."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from llava.serve.auth import check_binding, read_api_key
from llava.serve.sockets import check_address
from llava.utils import UserError, check_whole


@dataclass(frozen=True)
class WorkerFlags:
    """Checked flags of a worker."""

    host: str
    port: int
    address: str  # as the controller reaches it
    controller_address: str
    api_key: str | None


def add_worker_flags(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Add the flags; the reference's names and defaults, and --api-key."""
    parser.add_argument("--host", default="localhost", help="address to listen at (default: localhost)")
    parser.add_argument("--port", type=int, default=port, help=f"default: {port}")
    parser.add_argument(
        "--worker-address",
        default=None,
        help="address that the controller reaches it at (default: http://localhost and the port)",
    )
    parser.add_argument(
        "--controller-address", default="http://localhost:21001", help="default: http://localhost:21001"
    )
    parser.add_argument(
        "--no-register", action="store_true", help="do not look for a controller; ask the worker itself"
    )
    parser.add_argument(
        "--limit-model-concurrency", type=int, default=5, help="answers at a time; others wait (default: 5)"
    )
    parser.add_argument("--stream-interval", type=int, default=1, help="has no effect: each token is sent")
    parser.add_argument("--api-key", default=None, help="key of worker and controller (or LLAVA_API_KEY)")


def check_model_name(name: str | None) -> None:
    """Raise UserError for a --model-name that nobody can ask for; None is the default."""
    if name is not None and not (name.strip() and name.isprintable()):
        raise UserError(f"--model-name is {name!r}; expected a name that clients can ask for")


def read_worker_flags(args: argparse.Namespace) -> WorkerFlags:
    """Check the flags of `add_worker_flags`. Raises UserError."""
    check_whole("--limit-model-concurrency", args.limit_model_concurrency, 1)
    check_model_name(args.model_name)
    api_key = read_api_key(args.api_key)
    check_binding(args.host, api_key)
    if args.worker_address is not None:
        check_address("--worker-address", args.worker_address)
    check_address("--controller-address", args.controller_address)
    address = args.worker_address or f"http://localhost:{args.port}"
    return WorkerFlags(args.host, args.port, address, args.controller_address, api_key)
