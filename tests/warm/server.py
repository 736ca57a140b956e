"""Starts programs of the tests from a process that has torch, transformers and DeepSpeed imported already.

    python server.py SOCKET OWNER-PID

Tests start hundreds of programs, each of which would import for five seconds. tests/warm/client.py takes the
place of the interpreter: it hands its command line, environment and streams to this server, which forks. A
command that a forked process cannot run as a new interpreter would (other variables that are read at import,
other flags than -u, -m and -c) is refused, and the client starts the interpreter itself. When the client is
killed, so is what was forked for it. The server ends with the process OWNER-PID.
"""

from __future__ import annotations

import array
import contextlib
import gc
import io
import json
import os
import re
import resource
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
import types
import warnings
from pathlib import Path
from typing import NoReturn

# variables that are read where modules are imported: another value needs another interpreter
AT_IMPORT = re.compile(
    r"PYTHON|LD_|OMP_|MKL_|CUDA|TORCH_(?!EXTENSIONS|NCCL)|HF_|TRANSFORMERS_|DS_|TOKENIZERS_|MALLOC_|LANG|LC_|TZ|HOME|XDG_"
)
GIVEN = {"PYTHONUNBUFFERED", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE"}  # followed in the forked process
LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA)
PRELOADED = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "numpy",
    "PIL.Image",
    "llava.model.builder",
)
HEADER = 8  # bytes of a message's length


def at_import(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables whose values have to be the same."""
    return {key: value for key, value in environment.items() if AT_IMPORT.match(key) and key not in GIVEN}


def limits() -> list[list[int]]:
    """Return the limits of this process that a forked one inherits."""
    return [list(resource.getrlimit(one)) for one in LIMITS]


def program_of(words: list[str]) -> list[str] | None:
    """Return the words from `-m` or the script on; None for what only an interpreter understands."""
    while words and words[0] == "-u":
        words = words[1:]
    if len(words) >= 2 and words[0] in ("-m", "-c"):
        return words
    if words and words[0].endswith(".py"):
        return words
    return None


# ---- in the forked process ----


def run_program(request: dict, words: list[str], streams: list[int]) -> NoReturn:
    """Do what `python WORDS` does, in this process, and end it."""
    code = 1
    try:
        _prepare(request, streams)
        code = _run(words)
        threading._shutdown()  # waits for threads, as an interpreter that ends
        import atexit

        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 120
        os._exit(code)


def _prepare(request: dict, streams: list[int]) -> None:
    import torch  # imported long ago

    os.setsid()
    for number, given in enumerate(streams):
        os.dup2(given, number)
        os.close(given)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    environment = request["environment"]
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    if environment.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    tempfile.tempdir = None
    # torch makes a new thread pool after a fork, at the first call that needs it; when several threads come
    # at once, some find none ("Invalid thread pool!"). Here it is one thread.
    torch.set_num_threads(torch.get_num_threads())
    unbuffered = bool(environment.get("PYTHONUNBUFFERED")) or "-u" in request["words"][:1]
    sys.stdin = os.fdopen(0, encoding="utf-8")
    for name, number in (("stdout", 1), ("stderr", 2)):
        errors = "strict" if number == 1 else "backslashreplace"
        raw = os.fdopen(number, "wb", 0 if unbuffered else -1)
        line_buffering = number == 2 or raw.isatty()
        stream = io.TextIOWrapper(
            raw, "utf-8", errors, line_buffering=line_buffering, write_through=unbuffered
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.executable = request["python"]


def _run(words: list[str]) -> int:
    import runpy

    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            main = types.ModuleType("__main__")
            sys.modules["__main__"] = main
            exec(compile(words[1], "<string>", "exec"), vars(main))
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


# ---- the server ----


class Server:
    """Forks for each client, and tells it how the forked process has ended."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.environment, self.limits = at_import(dict(os.environ)), limits()
        self.running: dict[int, socket.socket] = {}  # by process id
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)

    def serve(self, owner: int) -> None:
        """Serve until the owner has gone."""
        while os.path.exists(f"/proc/{owner}"):
            for key, _ in self.selector.select(0.05):
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    self._client_has_gone(key.fileobj)
            self._collect()
        for process in self.running:
            _kill(process)

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        client.settimeout(30)
        try:
            request, streams = receive(client)
        except (OSError, ValueError, EOFError):
            client.close()
            return
        words = program_of(request["words"])
        if words is None or not self._serves(request):
            _tell(client, 0)
            client.close()
        else:
            sys.stdout.flush()
            process = os.fork()
            if process == 0:
                signal.set_wakeup_fd(-1)
                self.selector.close()
                self.listener.close()
                client.close()
                for other in self.running.values():
                    other.close()
                run_program(request, words, streams)
            self.running[process] = client
            self.selector.register(client, selectors.EVENT_READ)
            _tell(client, process)
        for one in streams:
            os.close(one)

    def _serves(self, request: dict) -> bool:
        environment = request["environment"]
        given = {"PYTHONPATH": self.environment["PYTHONPATH"], **at_import(environment)}
        differ = sorted(
            key for key in {*given, *self.environment} if given.get(key) != self.environment.get(key)
        )
        if differ or environment.get("PYTHONWARNINGS", "ignore") not in ("ignore", ""):
            print("not served:", request["words"][:3], *differ, flush=True)
            return False
        return request["limits"] == self.limits

    def _client_has_gone(self, client: socket.socket) -> None:
        process = next(one for one, other in self.running.items() if other is client)
        self.selector.unregister(client)
        _kill(process)

    def _collect(self) -> None:
        """Tell clients of processes that have ended."""
        for process in list(self.running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                client = self.running.pop(process)
                with contextlib.suppress(KeyError):
                    self.selector.unregister(client)
                _tell(client, os.waitstatus_to_exitcode(status))
                client.close()


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the client was killed
        client.sendall(f"{number}\n".encode())


def _kill(process: int) -> None:
    for kill in (os.kill, os.killpg):  # it may not lead its group yet
        with contextlib.suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)


def receive(client: socket.socket) -> tuple[dict, list[int]]:
    """Read a request: its length, its JSON, and three streams beside the length."""
    handles = array.array("i")
    head, extra, _, _ = client.recvmsg(HEADER, socket.CMSG_SPACE(3 * handles.itemsize))
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            handles.frombytes(data[: 3 * handles.itemsize])
    if len(head) < HEADER or len(handles) != 3:
        raise EOFError("no request")
    left, parts = int.from_bytes(head, "big"), []
    while left:
        part = client.recv(left)
        if not part:
            raise EOFError("half a request")
        parts.append(part)
        left -= len(part)
    return json.loads(b"".join(parts)), list(handles)


def main() -> None:
    """Listen first: clients wait while this imports."""
    address, owner = sys.argv[1], int(sys.argv[2])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)  # it is there when it can be connected to
    for name in PRELOADED:
        __import__(name)
    gc.collect()
    gc.freeze()
    Server(listener).serve(owner)


if __name__ == "__main__":
    main()
