"""What every program needs: user errors, exit codes, optional packages, log files and text moderation."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import logging
import logging.handlers
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from llava._compat import semaphore_value
from llava.constants import LOGDIR

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

# Shown to users of the web interface in place of an answer.
server_error_msg = (
    "**The server could not answer this request. Please regenerate, or reload the page and try again.**"
)
moderation_msg = "This text was refused by the content filter. Please ask something else."

MODERATION_URL = "https://api.openai.com/v1/moderations"
MODERATION_TIMEOUT_S = 5.0
LOG_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"

# The file handler that `build_logger` made first; a public name of the reference.
handler: logging.handlers.TimedRotatingFileHandler | None = None


class UserError(ValueError):
    """A mistake of the user: its message says what was found, what was expected and what to do."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed or cannot be imported."""


def shortened(text: object, limit: int = 300) -> str:
    """Return a text, or a path, of which the middle is left out where it is longer than `limit`."""
    whole = str(text)
    if len(whole) <= limit:
        return whole
    return f"{whole[: limit // 2]}...{whole[-limit // 4 :]} ({len(whole)} characters)"


def text_fault(text: str) -> str:
    """Say what keeps a text from being tokenized or written: half a character, or a NUL; "" for nothing."""
    if "\0" in text:
        return "holds a NUL character, which ends a text; omit it"
    half = next((one for one in text if "\ud800" <= one <= "\udfff"), "")
    if "\udc80" <= half <= "\udcff":  # how Python hands on a byte that is no UTF-8
        return f"holds the byte 0x{ord(half) - 0xDC00:02x}, which is no UTF-8; give it in UTF-8"
    return "holds half a character (a lone surrogate); give whole ones" if half else ""


def run_program(main: Callable[[], object]) -> None:
    """Run the main function of a command-line program.

    A UserError becomes one line on stderr and exit code 2 (its traceback is logged at level DEBUG), Ctrl-C
    becomes exit code 130. Output that nobody reads any more (`| head`) ends the program quietly with 141, as
    other tools; output that cannot be written (a full disk) is one line and exit code 2. Standard streams
    that the program was started without are empty ones. Every other exception is a fault of the program and
    keeps its traceback.
    """
    _open_missing_streams()
    with _watched_output():
        _run(main)


def _run(main: Callable[[], object]) -> None:
    try:
        main()
    except UserError as error:
        logger.debug("a user error ended the program", exc_info=True)
        told = " ".join(str(error).split())
        _end(told.encode("utf-8", "backslashreplace").decode("utf-8"))  # half characters of a file's name
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        logger.debug("too long a path ended the program", exc_info=True)
        _end(
            f"the path {shortened(error.filename)!r}, or a name in it, is too long for the file system; give "
            "a shorter one"
        )
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)


def _end(told: str) -> NoReturn:
    """End the program with one line behind what it has written so far."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.write(f"error: {told}\n")
    sys.exit(2)


def _open_missing_streams() -> None:
    """Give a program that was started without a standard stream (`>&-`) an empty one in its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


@contextlib.contextmanager
def _watched_output() -> Iterator[None]:
    """End a program whose output goes nowhere; what it ended with itself counts before a missing reader."""
    failed = 0
    try:
        yield
        fault = _output_fault(None)
    except (OSError, SystemExit) as error:
        fault = _output_fault(error)
        if fault is None:
            raise
        failed = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 0
    if isinstance(fault, BrokenPipeError):
        sys.exit(failed or 141)
    if fault is not None:
        _end(f"the output of this program cannot be written: {fault.strerror}")


def _output_fault(raised: BaseException | None) -> OSError | None:
    """Return why what was written cannot reach its reader, and let the rest go nowhere; None: it does.

    raised: what ended the program. An unbuffered stream does not repeat its error, so it is written to.
    """
    nameless = isinstance(raised, OSError) and raised.errno is not None and raised.filename is None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            if nameless:
                os.write(stream.fileno(), b"\n")
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # Python flushes once more at its end
            os.close(nowhere)
            return error
    return None


def accept_any_text() -> None:
    """Let a terminal that is not UTF-8 lose single characters and not the whole program."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def lazy_names(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for `module` (PEP 562) that imports a name from its home when it is first used.

    homes: name -> dotted name of the module that has it. For modules that are to be imported without torch.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[module], name, value)
        return value

    return load


def check_whole(name: str, value: object, least: int) -> None:
    """Raise UserError for what is no whole number of at least `least`; name: what the message calls it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} is {value!r}; expected a whole number of at least {least}")


def import_optional(module: str, *, needed_for: str, install: str) -> ModuleType:
    """Import an optional package, or say how to install it.

    needed_for: what the caller wants it for ("training with --bits 4"); install: what `pip install` takes
    ("llava[train]"). Raises MissingPackageError, which keeps the original exception as its cause.
    """
    try:
        return importlib.import_module(module)
    # a broken package may raise anything while it is imported (missing CUDA library: OSError, RuntimeError)
    except Exception as error:
        top = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == top
        state = "is not installed" if missing else f"is installed but does not import ({_brief(error)})"
        remedy = "Install" if missing else "Repair"
        raise MissingPackageError(
            f"{needed_for} needs the package {module!r}, which {state}. "
            f"{remedy} it with: pip install '{install}'"
        ) from error


@contextlib.contextmanager
def watched(what: str, remedy: str, *, seconds: float = 60.0) -> Iterator[None]:
    """Say once what is waited for, and what to do, when a block takes longer than `seconds`."""
    text = f"still waiting for {what}, for {seconds:.0f} s by now; {remedy}"
    timer = threading.Timer(seconds, logger.warning, args=("%s", text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _brief(error: BaseException) -> str:
    """Name an exception and its message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class StreamToLogger(io.TextIOBase):
    """A text stream that passes whole lines on to a logger, for code that prints where a log is wanted."""

    def __init__(self, logger: logging.Logger, log_level: int = logging.INFO) -> None:
        self.logger = logger
        self.log_level = log_level
        self.linebuf = ""
        # a console handler may write to the stream that this one replaced: never log from within a log call
        self._writing = False

    def writable(self) -> bool:
        return True

    def write(self, buf: str) -> int:
        """Log each complete line of `buf`; keep an unfinished last line for later. Returns len(buf)."""
        self.linebuf += buf
        *lines, self.linebuf = self.linebuf.split("\n")
        for line in lines:
            self._log(line)
        return len(buf)

    def flush(self) -> None:
        """Log the unfinished last line."""
        line, self.linebuf = self.linebuf, ""
        self._log(line)

    def _log(self, line: str) -> None:
        line = line.rstrip()
        if not line or self._writing:
            return
        self._writing = True
        try:
            self.logger.log(self.log_level, "%s", line)
        finally:
            self._writing = False


def build_logger(
    logger_name: str, logger_filename: str, *, log_dir: str | Path = LOGDIR, capture_output: bool = False
) -> logging.Logger:
    """Return the logger of a serving program; everything logged in this process also goes to a file.

    The file is `log_dir/logger_filename`, starts a new part each day (UTC) and is attached once, to the root
    logger. `capture_output` replaces sys.stdout and sys.stderr by loggers, as the reference always did.
    """
    global handler
    path = Path(log_dir) / logger_filename
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    formatter = logging.Formatter(LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S")
    if not root.handlers:
        console = logging.StreamHandler(sys.__stderr__)
        console.setFormatter(formatter)
        root.addHandler(console)
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    attached = [getattr(one, "baseFilename", None) for one in root.handlers]
    if os.path.abspath(path) not in attached:
        file_handler = logging.handlers.TimedRotatingFileHandler(path, when="D", utc=True, encoding="utf-8")
        file_handler.setFormatter(formatter)
        root.addHandler(file_handler)
        handler = handler or file_handler
    if capture_output:
        sys.stdout = StreamToLogger(logging.getLogger("stdout"), logging.INFO)  # type: ignore[assignment]
        sys.stderr = StreamToLogger(logging.getLogger("stderr"), logging.ERROR)  # type: ignore[assignment]
    named = logging.getLogger(logger_name)
    named.setLevel(logging.INFO)
    return named


def disable_torch_init() -> None:
    """Do nothing: kept because scripts call it before loading a model.

    The reference switched off the initial values of torch layers to save time. Today from_pretrained builds
    models on the meta device, and switching them off would only leave new layers filled with random memory.
    """


@dataclass(frozen=True)
class Moderation:
    """Result of a content check: flagged is None when the check itself failed, and reason says why."""

    flagged: bool | None
    reason: str


def check_moderation(text: str, *, timeout_s: float = MODERATION_TIMEOUT_S) -> Moderation:
    """Ask OpenAI's moderation service about a text. Raises UserError when OPENAI_API_KEY is not set."""
    key = os.environ.get("OPENAI_API_KEY", "")
    if not key:
        raise UserError(
            "moderation needs an OpenAI key, but the environment variable OPENAI_API_KEY is not set; "
            "set it or start without --moderate"
        )
    requests = import_optional("requests", needed_for="moderation", install="requests")
    try:
        response = requests.post(
            MODERATION_URL,
            headers={"Authorization": f"Bearer {key}"},
            json={"input": text},
            timeout=timeout_s,
        )
        if response.status_code != 200:
            return Moderation(
                None, f"the moderation service answered with HTTP status {response.status_code}"
            )
        flagged = bool(response.json()["results"][0]["flagged"])
    except requests.exceptions.RequestException as error:  # includes invalid JSON
        return Moderation(None, f"the moderation service could not be asked ({_brief(error)})")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return Moderation(None, f"the moderation service answered in an unknown form ({_brief(error)})")
    return Moderation(
        flagged, "the moderation service flagged the text" if flagged else "nothing was flagged"
    )


def violates_moderation(text: str) -> bool:
    """Tell whether a text is to be refused; when the check fails, the text passes and a warning is logged."""
    result = check_moderation(text)
    if result.flagged is None:
        logger.warning("text was let through unchecked: %s", result.reason)
    return bool(result.flagged)


def pretty_print_semaphore(semaphore: asyncio.Semaphore | None) -> str:
    """Describe an asyncio semaphore (or None) for a log line."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore_value(semaphore)}, locked={semaphore.locked()})"
