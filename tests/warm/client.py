"""What takes the place of the interpreter: asks tests/warm/server.py to fork, or starts the interpreter.

tests/warming.py writes it into a folder as the program `python`, with INTERPRETER and SOCKET filled in.
"""

import array
import contextlib
import json
import os
import resource
import signal
import socket
import sys

INTERPRETER, SOCKET = "@INTERPRETER@", "@SOCKET@"
LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA)


def main() -> None:
    """Run `python WORDS`."""
    words = sys.argv[1:]
    served = ask(words)
    if served is None:
        os.execv(INTERPRETER, [INTERPRETER, *words])
    server, process = served

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    code = int(line_of(server) or b"1")
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def ask(words: list[str]) -> "tuple[socket.socket, int] | None":
    """Return the connection and the forked process; None when there is no server, or it cannot serve this."""
    umask = os.umask(0)
    os.umask(umask)
    request = {
        "words": words,
        "folder": os.getcwd(),
        "umask": umask,
        "environment": dict(os.environ),
        "limits": [list(resource.getrlimit(one)) for one in LIMITS],
        "python": sys.argv[0],
    }
    text = json.dumps(request).encode()
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(SOCKET)
        streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))]
        server.sendmsg([len(text).to_bytes(8, "big")], streams)
        server.sendall(text)
        process = int(line_of(server) or b"0")
    except OSError:
        return None
    return (server, process) if process else None


def line_of(server: socket.socket) -> bytes:
    """Read a line; what was read when the server goes."""
    found = b""
    while not found.endswith(b"\n"):
        part = server.recv(1)
        if not part:
            return b""
        found += part
    return found


main()
