"""Chat with a model in the terminal: `python -m llava.serve.cli --model-path ... --image-file ...`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from llava.conversation import Conversation
from llava.inference.chat import ChatSession
from llava.inference.compiled import CompiledDecoder, check_compile_device
from llava.inference.loading import check_device, open_model
from llava.inference.program import accept_any_text, quiet_libraries
from llava.inference.prompt import pick_conv_mode
from llava.inference.sampling import SamplingParams
from llava.mm_utils import get_model_name_from_path, load_image
from llava.utils import UserError, disable_torch_init, run_program

__all__ = ["build_parser", "load_image", "main"]

# Notes on how an answer ended, for the endings that a reader would not see.
_ENDINGS = {
    "length": "the answer was cut at --max-new-tokens",
    "context": "the answer was cut, the model's context is full",
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line: the reference's flags, and --top-p and --seed."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.cli",
        description="Chat about an image. Ctrl-C stops an answer; an empty line or Ctrl-D ends the program. "
        "Questions may also be piped in, one a line; stdout then holds nothing but the dialog.",
    )
    parser.add_argument(
        "--model-path", default="facebook/opt-350m", help="folder or hub name of the checkpoint"
    )
    parser.add_argument(
        "--model-base", default=None, help="base model of a LoRA or projector-only checkpoint"
    )
    parser.add_argument(
        "--image-file", required=True, help="path or http(s) URL; goes with the first question"
    )
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:N or mps (default: the best one present)"
    )
    parser.add_argument(
        "--conv-mode", default=None, help="prompt template (default: chosen from the checkpoint)"
    )
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (default: 0.2)")
    parser.add_argument(
        "--top-p", type=float, default=None, help="keep the likeliest tokens of this total share"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: 512)")
    parser.add_argument("--seed", type=int, default=None, help="makes random answers repeatable")
    parser.add_argument("--load-8bit", action="store_true", help="quantise to 8 bits while loading")
    parser.add_argument("--load-4bit", action="store_true", help="quantise to 4 bits while loading")
    parser.add_argument(
        "--compile", action="store_true", help="compile the decoding step: a slow start, then faster answers"
    )
    parser.add_argument("--debug", action="store_true", help="show library messages and every prompt")
    return parser


def main(args: argparse.Namespace) -> None:
    """Chat until the input ends. Raises UserError for what keeps the program from starting.

    `args` may lack the flags that the reference does not have.
    """
    disable_torch_init()
    if not args.debug:
        quiet_libraries()
    params = SamplingParams(
        temperature=args.temperature,
        top_p=getattr(args, "top_p", None),
        max_new_tokens=args.max_new_tokens,
        seed=getattr(args, "seed", None),
    )
    device = check_device(args.device)
    if compiles := getattr(args, "compile", False):
        check_compile_device(device)
    image = load_image(args.image_file)  # before the model: a wrong path should not take minutes to show
    name = get_model_name_from_path(args.model_path)
    _note(f"loading {args.model_path} on {device}{'' if args.device else ' (the best device present)'} ...")
    tokenizer, model, image_processor, _ = open_model(
        args.model_path,
        args.model_base,
        name,
        device=device,
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
    )
    if image_processor is None:
        raise UserError(
            f"{args.model_path} is a text model without a vision tower; --image-file needs a LLaVA model"
        )
    template, reason = pick_conv_mode(args.conv_mode, name, model.config)
    _note(f"conversation mode: {template} ({reason})")
    decoder = None
    if compiles:
        decoder = CompiledDecoder(model, image_processor)
        _note("the first answer begins with compiling, which may take minutes")
    session = ChatSession(tokenizer, model, image_processor, template=template, decoder=decoder)
    _chat(session, image, params, debug=args.debug)


def _chat(session: ChatSession, image: Any, params: SamplingParams, *, debug: bool) -> None:
    """Ask question after question; the image goes with the first one that is answered."""
    at_terminal = sys.stdin.isatty()
    user, assistant = display_roles(session.conversation)
    for question in _questions(user, at_terminal=at_terminal):
        images = () if session.images else (image,)
        print(f"{assistant}: ", end="", flush=True)
        try:
            with contextlib.closing(session.stream(question, images, params)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            if not at_terminal:
                raise
            _note("stopped")
        except UserError as error:
            print(flush=True)
            if not at_terminal:
                raise
            _note(f"error: {error}")
            continue
        if session.finish_reason in _ENDINGS:
            _note(_ENDINGS[session.finish_reason])
        if debug:
            _note(
                f"messages: {session.conversation.messages!r}\nprompt: {session.conversation.get_prompt()!r}"
            )


def _questions(user: str, *, at_terminal: bool) -> Iterator[str]:
    """Yield questions until an empty line or the end of the input; only a terminal is prompted."""
    if not at_terminal:
        for line in sys.stdin:
            if not line.strip():
                return
            print(f"{user}: {line.rstrip()}", flush=True)
            yield line.rstrip("\r\n")
        return
    with contextlib.suppress(ImportError):  # line editing and history, where Python has it
        import readline  # noqa: F401
    while True:
        try:
            line = input(f"{user}: ")
        except EOFError:
            print()
            break
        except KeyboardInterrupt:
            print()
            _note("an empty line or Ctrl-D ends the program")
            continue
        if not line.strip():
            break
        yield line
    print("bye")


def display_roles(conversation: Conversation) -> tuple[str, str]:
    """Return the names to show: the template's roles without markup (`<|im_start|>user` is "user")."""
    user, assistant = (role.replace("<|im_start|>", "").strip() for role in conversation.roles)
    return user or "USER", assistant or "ASSISTANT"


def _note(text: str) -> None:
    """Tell the person at the terminal something that is not part of the dialog."""
    print(text, file=sys.stderr, flush=True)


def _run() -> None:
    accept_any_text()
    main(build_parser().parse_args())


if __name__ == "__main__":
    run_program(_run)
