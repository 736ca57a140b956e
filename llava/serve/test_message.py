"""Sends one message to a worker and prints its answer: `python -m llava.serve.test_message`."""

from __future__ import annotations

import argparse
import sys

from llava.arguments import ProgramParser
from llava.conversation import CHAT_TEMPLATE, conv_templates, template_of
from llava.serve.auth import read_api_key
from llava.serve.workers.client import call, stream
from llava.serve.workers.discovery import way_to_ask
from llava.serve.workers.flags import check_model_name
from llava.serve.workers.frames import MESSAGES
from llava.serve.workers.messages import messages_of
from llava.utils import UserError, accept_any_text, check_whole, run_program

DEFAULT_MESSAGE = "Tell me a story with more than 1000 words."


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = ProgramParser(
        prog="python -m llava.serve.test_message",
        description="Ask a worker one question, with the template that it or its model's name tells.",
    )
    parser.add_argument(
        "--controller-address", default="http://localhost:21001", help="default: http://localhost:21001"
    )
    parser.add_argument(
        "--worker-address", default=None, help="ask this worker (default: the controller's choice)"
    )
    parser.add_argument(
        "--model-name", default=None, help="a model that the controller lists (default: the only one)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=32, help="longest answer (default: 32)")
    parser.add_argument("--message", default=DEFAULT_MESSAGE, help=f"default: {DEFAULT_MESSAGE}")
    parser.add_argument("--api-key", default=None, help="key of the servers (or LLAVA_API_KEY)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Print the answer as it comes. Raises UserError."""
    if not args.message.strip():
        raise UserError("--message is empty; write a question")
    check_model_name(args.model_name)
    check_whole("--max-new-tokens", args.max_new_tokens, 1)
    key = read_api_key(args.api_key)
    address = args.worker_address
    if address is None:
        listed = call(args.controller_address, "/list_models", api_key=key)
        model = args.model_name or _only(listed["models"])
        found = call(args.controller_address, "/get_worker_address", {"model": model}, api_key=key)
        address = found["address"]
        if not address:
            raise UserError(f"no worker has the model {model!r}; start one, or give --worker-address")
        # this one worker's, whatever others of the model take
        listed = {**listed, MESSAGES: call(address, "/worker_get_status", api_key=key).get(MESSAGES)}
    else:
        listed = call(address, "/worker_get_status", api_key=key)
        model = args.model_name or listed["model_names"][0]
    way = way_to_ask(model, listed)
    template = conv_templates[way.template]
    conversation = template.copy()
    conversation.append_message(conversation.roles[0], args.message)
    conversation.append_message(conversation.roles[1], None)
    params = {"model": model, "temperature": 0.0, "max_new_tokens": args.max_new_tokens}
    if way.by_messages and way.template == CHAT_TEMPLATE:  # else the prompt is shown, as by the reference
        asked = {**params, MESSAGES: messages_of(conversation, template)}
        _show(f"{args.message}\n", 0, address, asked, key)
        return
    prompt = conversation.get_prompt()
    stop = next(iter(template_of(conversation).stop_strings()), None)
    _show(f"{prompt} ", len(prompt), address, {**params, "prompt": prompt, "stop": stop}, key)


def _only(names: list[str]) -> str:
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise UserError(f"--model-name is missing; the controller's models are: {listed}")
    return names[0]


def _show(question: str, shown: int, address: str, params: dict[str, object], key: str | None) -> None:
    """Print the question, and the answer piece by piece; shown: how much of the text is the prompt."""
    sys.stdout.write(question)
    for one in stream(address, params, api_key=key):
        error = one.get("error")
        if one["error_code"] or error:
            sys.stdout.write("\n")
            # the text is for readers of a page; programs of the reference have nothing else
            said = error.get("message") if isinstance(error, dict) else None
            raise UserError(f"{said or one['text']} (error_code: {one['error_code']})")
        sys.stdout.write(one["text"][shown:])
        sys.stdout.flush()
        shown = max(shown, len(one["text"]))
    sys.stdout.write("\n")


def _run() -> None:
    accept_any_text()
    main(build_parser().parse_args())


if __name__ == "__main__":
    run_program(_run)
