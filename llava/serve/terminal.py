"""The chat of llava.serve.cli: questions and commands line by line, from a terminal or a pipe."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator

from PIL import Image

from llava.conversation import Conversation
from llava.images import load_image
from llava.inference.chat import ChatSession
from llava.inference.compiled import CompiledDecoder, check_compile_device
from llava.inference.loading import check_device
from llava.inference.program import open_from_flags, quiet_libraries
from llava.inference.prompt import pick_conv_mode
from llava.inference.sampling import SamplingParams
from llava.mm_utils import get_model_name_from_path
from llava.utils import UserError, disable_torch_init
from llava.video import Video

# Notes on how an answer ended, for the endings that a reader would not see.
_ENDINGS = {
    "length": "the answer was cut at --max-new-tokens",
    "context": "the answer was cut, the model's context is full",
}

_HELP = """\
/image PATH  the image (path or URL) goes with the next question
/reset       start over: the dialog is forgotten, the last image goes with the next question
/help        this list
/exit        end the program; so does an empty line or Ctrl-D
Ctrl-C stops an answer. A question that begins with such a word: put a space in front of it."""
_COMMANDS = ("/image", "/reset", "/help", "/exit")


def open_chat(args: argparse.Namespace, image: Image.Image | Video | None) -> TerminalChat:
    """Load the model that the flags of llava.serve.cli ask for, and return a chat with it.

    image: that of --image-file, or the video of --video-file. Raises UserError for settings and checkpoints
    that cannot be used.
    """
    disable_torch_init()
    if not args.debug:
        quiet_libraries()
    params = SamplingParams(
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    device = check_device(args.device)
    if args.compile:
        check_compile_device(device)
    name = get_model_name_from_path(args.model_path)
    _note(f"loading {args.model_path} on {device}{'' if args.device else ' (the best device present)'} ...")
    loaded = open_from_flags(args)
    if image is not None and not loaded.has_tower:
        raise UserError(
            f"{args.model_path} is a text model without a vision tower; an image or a video needs a LLaVA "
            "model"
        )
    template, reason = pick_conv_mode(args.conv_mode, name, loaded.model.config)
    _note(f"conversation mode: {template} ({reason})")
    decoder = None
    if args.compile:
        decoder = CompiledDecoder(loaded.model, loaded.image_processor)
        _note("the first answer begins with compiling, which may take minutes")
    session = ChatSession(loaded, template=template, decoder=decoder)
    return TerminalChat(session, image, params, debug=args.debug)


class TerminalChat:
    """One conversation on stdin and stdout; an image goes with the first question that is answered."""

    def __init__(
        self,
        session: ChatSession,
        image: Image.Image | Video | None,
        params: SamplingParams,
        *,
        debug: bool = False,
    ) -> None:
        self.session = session
        self.params = params
        self.debug = debug
        self.user, self.assistant = display_roles(session.conversation)
        self._image = image  # the last one that was given
        self._image_is_new = image is not None  # it has not gone with a question yet
        self._at_terminal = sys.stdin.isatty()

    def run(self) -> None:
        """Take line after line until the input ends; from a pipe the first error is raised as UserError."""
        if self._at_terminal:
            _note("type a question, or /help")
        for line in _lines(f"{self.user}: ", at_terminal=self._at_terminal):
            try:
                command, argument = split_command(line)
                if command == "/exit":
                    break
                if command:
                    self._obey(command, argument)
                else:
                    self._ask(line)
            except KeyboardInterrupt:
                if not self._at_terminal:
                    raise
                _note("stopped")
            except UserError as error:
                if not self._at_terminal:
                    raise
                _note(f"error: {error}")
        if self._at_terminal:
            print("bye")

    def _obey(self, command: str, argument: str) -> None:
        """Do what a command asks. Raises UserError for an image that cannot be used."""
        if command == "/help":
            _note(_HELP)
        elif command == "/reset":
            self.session.reset()
            self._image_is_new = self._image is not None
            _note("a new dialog" + ("; the image goes with the next question" if self._image_is_new else ""))
        else:
            if self.session.image_processor is None:
                raise UserError("this is a text model without a vision tower; /image needs a LLaVA model")
            self._image = load_image(os.path.expanduser(argument))
            instead = ", in place of the image before it" if self._image_is_new else ""
            self._image_is_new = True
            _note(f"{argument} goes with the next question{instead}")

    def _ask(self, question: str) -> None:
        """Print the answer to a question piece by piece; its role stands in front of the first one."""
        if not self._at_terminal:
            print(f"{self.user}: {question.rstrip()}", flush=True)
        images = [self._image] if self._image is not None and self._image_is_new else []
        n_images = len(self.session.images)
        begun = False
        try:
            with contextlib.closing(self.session.stream(question, images, self.params)) as pieces:
                for piece in pieces:
                    print(piece if begun else f"{self.assistant}: {piece}", end="", flush=True)
                    begun = True
            print("" if begun else f"{self.assistant}: ", flush=True)
        except (KeyboardInterrupt, UserError) as error:
            if begun or isinstance(error, KeyboardInterrupt):  # a terminal shows ^C in the line
                print(flush=True)
            raise
        finally:  # a turn that is withdrawn gives its image back
            self._image_is_new &= len(self.session.images) == n_images
        if self.session.finish_reason in _ENDINGS:
            _note(_ENDINGS[self.session.finish_reason])
        if self.debug:
            dialog = self.session.conversation
            _note(f"messages: {dialog.messages!r}\nprompt: {dialog.get_prompt()!r}")


def split_command(line: str) -> tuple[str, str]:
    """Split a line into a command and what stands behind it; ("", "") for a question.

    Raises UserError for a lone word that looks like a command and is none, and for a command with too much or
    too little behind it.
    """
    command, _, argument = line.strip().partition(" ")
    if not line.startswith("/"):
        return "", ""
    argument = argument.strip()
    if command not in _COMMANDS:
        if not argument and re.fullmatch("/[a-z]+", command):
            raise UserError(
                f"{command} is no command; the commands are {', '.join(_COMMANDS)} "
                "(to ask it as a question put a space in front)"
            )
        return "", ""
    if command == "/image":
        if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "'\"":
            argument = argument[1:-1]
        if not argument:
            raise UserError("/image needs the path or URL of an image behind it: /image PATH")
    elif argument:
        raise UserError(
            f"{command} takes nothing behind it, but {argument!r} stands there "
            "(to ask it as a question put a space in front)"
        )
    return command, argument


def _lines(prompt: str, *, at_terminal: bool) -> Iterator[str]:
    """Yield lines until an empty one or the end of the input; only a terminal is prompted."""
    if not at_terminal:
        for line in sys.stdin:
            if not line.strip():
                return
            yield line.rstrip("\r\n")
        return
    with contextlib.suppress(ImportError):  # line editing and history, where Python has it
        import readline  # noqa: F401
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            _note("/exit, an empty line or Ctrl-D ends the program")
            continue
        if not line.strip():
            return
        yield line


def display_roles(conversation: Conversation) -> tuple[str, str]:
    """Return the names to show: the template's roles without markup (`<|im_start|>user` is "user")."""
    user, assistant = (re.sub("<[^<>]*>", "", role).strip() for role in conversation.roles)
    return user or "USER", assistant or "ASSISTANT"


def _note(text: str) -> None:
    """Tell the person at the terminal something that is not part of the dialog."""
    print(text, file=sys.stderr, flush=True)
