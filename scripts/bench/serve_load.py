"""Puts servers under load in front of a controller, kills a worker now and then, and prints JSON.

python scripts/bench/serve_load.py --model-path runs/quickstart/llava-digits [--images FOLDER] [--clients 64]
    [--seconds 120] [--kills 2] [--workers 2] [--image-size 336]

Starts a controller, workers and `llava.serve.openai_api --controller-address` on this machine. Clients ask
one request after another: valid ones (streamed and whole, with and without an image), invalid ones, and some
that go away in the middle of an answer or before it. The last worker is killed with -9 and started again
`--kills` times, each time after an answer; on a slow machine the load lasts longer than `--seconds`, until
requests of each kind have ended, and a valid one after the last kill. Afterwards:

- lost: requests that ended neither in an answer nor in a typed error (has to be 0), with what was seen
- errors: typed errors of valid requests by code; each comes from a worker that died or a full queue
- memory: MiB of each process that lived through, after a third of the time since the first answer and at the
  end; growth in percent
- left: what runs or waits when everybody has gone (has to be 0), and whether the killed worker answers again
- first_token_seconds, tokens_per_second: valid requests under load, and the model asked directly, one
  question after another in this process before (`direct`); ratio: the first against the second
Exits with code 1 when something was lost, is left over, or memory has grown by more than --growth percent.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
from PIL import Image
from servers import Servers, wait_until

Result = dict[str, Any]
MIB = 2**20
N_QUESTIONS = 48  # different ones: what is kept of them is in memory before the second half begins
DEADLINE_S = 120.0  # a request that has not ended by then is lost
NO_IMAGE = {"type": "image_url", "image_url": {"url": "data:,x"}}
INVALID: tuple[tuple[dict[str, Any] | bytes, tuple[int, ...]], ...] = (
    (b'{"model": ', (400,)),
    ({"model": "no-such-model"}, (404,)),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, (400,)),
    ({"messages": []}, (400,)),
    ({"temperature": 7}, (400,)),
    ({"logprobs": True}, (400,)),
    ({"messages": [{"role": "user", "content": [NO_IMAGE]}]}, (400,)),
    ({"messages": [{"role": "user", "content": "word " * 30_000}]}, (400,)),
)  # fmt: skip


@dataclass
class Seen:
    """What the clients have seen."""

    answers: int = 0
    tokens: int = 0
    refused: int = 0  # invalid requests, refused as they should be
    vanished: int = 0
    lost: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  # seconds to the first token of a stream

    def has_all(self, answers: int) -> bool:
        """Return whether each kind of request has ended once, and this many of them in an answer."""
        return self.answers >= answers and self.refused > 0 and self.vanished > 0


# ---- what is asked ----


def make_questions(folder: Path | None, size: int, max_tokens: int) -> list[dict[str, Any]]:
    """Return requests: every second one has an image, of the folder or one colour."""
    paths = sorted(folder.glob("*.png"))[:N_QUESTIONS] if folder is not None else []
    found = []
    for number in range(N_QUESTIONS):
        content: list[dict[str, Any]] = []
        if number % 2:
            data = paths[number % len(paths)].read_bytes() if paths else one_colour(number, size)
            url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}]
        text = "Which digit is this?" if number % 2 else "Tell a story of ships. " * (1 + number % 5)
        content.append({"type": "text", "text": f"{text} ({number})"})
        message = {"role": "user", "content": content}
        found.append({"messages": [message], "max_tokens": max_tokens, "temperature": 0})
    return found


def one_colour(number: int, size: int) -> bytes:
    """Return a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (number * 5 % 256, number * 31 % 256, 90)).save(buffer, "PNG")
    return buffer.getvalue()


# ---- clients ----


class Load:
    """Clients that ask until `end`."""

    def __init__(self, url: str, model: str, questions: list[dict[str, Any]]) -> None:
        self.url, self.model, self.questions = f"{url}/v1/chat/completions", model, questions
        self.seen = Seen()
        self.end = False

    async def run_client(self, number: int, client: httpx2.AsyncClient) -> None:
        """Ask one request after another."""
        luck = random.Random(number)
        while not self.end:
            kind = luck.choices(("stream", "whole", "invalid", "vanish"), (45, 20, 15, 20))[0]
            try:
                await asyncio.wait_for(self._ask(kind, luck, client), DEADLINE_S)
            except (httpx2.HTTPError, asyncio.TimeoutError, TimeoutError, ValueError, KeyError) as error:
                self.seen.lost.append(f"{kind}: {type(error).__name__}: {error}"[:300])

    async def _ask(self, kind: str, luck: random.Random, client: httpx2.AsyncClient) -> None:
        question = {"model": self.model, **luck.choice(self.questions)}
        if kind == "invalid":
            changed, expected = luck.choice(INVALID)
            body = changed if isinstance(changed, bytes) else json.dumps({**question, **changed}).encode()
            head = {"content-type": "application/json"}
            reply = await client.post(self.url, content=body, headers=head)
            code = code_of(reply.json())
            if reply.status_code in expected and code:
                self.seen.refused += 1
            else:
                await self._failed(kind, reply.status_code, code)
        elif kind == "whole":
            reply = await client.post(self.url, json=question)
            if reply.status_code == 200:
                self._answered(reply.json()["usage"], reply.json()["choices"][0]["finish_reason"])
            else:
                await self._failed(kind, reply.status_code, code_of(reply.json()))
        else:
            await self._stream(question, client, luck if kind == "vanish" else None)

    async def _stream(
        self, question: dict[str, Any], client: httpx2.AsyncClient, leaves: random.Random | None
    ) -> None:
        """Read a stream; one who `leaves` goes away after some events, or before the first."""
        body = {**question, "stream": True, "stream_options": {"include_usage": True}}
        patience = leaves.choice((0, 1, 3, 8)) if leaves else None
        began, first, reason, usage = time.monotonic(), None, None, None
        async with client.stream("POST", self.url, json=body) as reply:
            if reply.status_code != 200:
                return await self._failed(
                    "stream", reply.status_code, code_of(json.loads(await reply.aread()))
                )
            count = 0
            async for line in reply.aiter_lines():
                if count == patience:
                    self.seen.vanished += 1
                    return None
                count += bool(line)
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return await self._failed("stream", 200, code_of(event))
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    reason = choice["finish_reason"] or reason
                    if choice["delta"].get("content") and first is None:
                        first = time.monotonic() - began
        self._answered(usage, reason)
        if first is not None:
            self.seen.first.append(first)
        return None

    def _answered(self, usage: dict[str, int] | None, reason: str | None) -> None:
        if usage is None or reason not in ("stop", "length"):
            self.seen.lost.append(f"an answer without an end: usage {usage}, finish_reason {reason}")
            return
        self.seen.answers += 1
        self.seen.tokens += usage["completion_tokens"]

    async def _failed(self, kind: str, status: int, code: str | None) -> None:
        """Note a typed error; one without a code, or of an invalid request that was not refused, is lost."""
        again = code in ("queue_full", "worker_gone", "no_worker", "controller_gone", "engine_dead")
        if not again:
            self.seen.lost.append(f"{kind}: status {status}, code {code}")
        else:
            self.seen.errors[str(code)] += 1
            await asyncio.sleep(0.5)


def code_of(body: dict[str, Any]) -> str | None:
    """Return the code of an error in OpenAI's form; None for anything else."""
    error = body.get("error")
    if (
        not isinstance(error, dict)
        or not error.get("message")
        or set(error) != {"message", "type", "param", "code"}
    ):
        return None
    return str(error["code"])


# ---- the measurement ----


async def run_load(servers: Servers, load: Load, args: argparse.Namespace) -> dict[str, list[float]]:
    """Ask with all clients, kill the last worker now and then; returns MiB of each process, each second."""
    memory: dict[str, list[float]] = {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=args.clients)
    async with httpx2.AsyncClient(timeout=DEADLINE_S, limits=limits, trust_env=False) as client:
        tasks = [asyncio.ensure_future(load.run_client(one, client)) for one in range(args.clients)]
        began = time.monotonic()
        kills = [args.seconds * (one + 1) / (args.kills + 1) for one in range(args.kills)]
        last = len(servers.worker_ports) - 1
        wanted = 1  # answers that must have come before the next kill, or the end
        while time.monotonic() - began < args.seconds + args.patience:
            if time.monotonic() - began >= args.seconds and not kills and load.seen.has_all(wanted):
                break
            if kills and time.monotonic() - began >= kills[0] and load.seen.has_all(wanted):
                kills.pop(0)
                servers.kill_worker(last)
                servers.start_worker(last)
                wanted = load.seen.answers + 1
            for name, process in servers.processes.items():
                if load.seen.answers and (name != f"worker-{last}" or not args.kills):
                    memory.setdefault(name, []).append(psutil.Process(process.pid).memory_info().rss / MIB)
            await asyncio.sleep(0.5)
        load.end = True
        await asyncio.gather(*tasks)
    return memory


def ask_directly(args: argparse.Namespace, questions: list[dict[str, Any]]) -> Result:
    """Ask the model in this process, one question after another, none twice."""
    from llava.inference.assistant import load  # torch is for this part alone

    assistant = load(args.model_path, device=args.device)
    assistant.chat("Hello", max_new_tokens=4)  # what happens once is no part of it
    first, tokens, began = [], 0, time.monotonic()
    for question in questions:
        start = time.monotonic()
        if start - began > args.direct_seconds:
            break
        settings = {"temperature": question["temperature"], "max_new_tokens": question["max_tokens"]}
        text = ""
        for piece in assistant.stream(question["messages"], **settings):
            if piece and not text:
                first.append(time.monotonic() - start)
            text += piece
        tokens += len(assistant.tokenizer(text, add_special_tokens=False).input_ids) + 1  # and the end
    seconds = time.monotonic() - began
    return {"first_token_seconds": spread(first), "tokens_per_second": round(tokens / seconds, 1)}


def spread(seconds: list[float]) -> Result:
    """Return the middle and the 95th percentile."""
    if len(seconds) < 2:
        return {"p50": None, "p95": None}
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50": round(cuts[9], 3), "p95": round(cuts[18], 3)}


def growth_of(memory: dict[str, list[float]]) -> Result:
    """Compare each process's memory after a third of the time with that at the end."""
    found = {}
    for name, values in memory.items():
        third = len(values) // 3
        window = max(1, third // 2)
        before, after = statistics.median(values[third : third + window]), statistics.median(values[-window:])
        found[name] = {
            "after_a_third": round(before, 1),
            "at_the_end": round(after, 1),
            "growth_percent": round(100 * (after / before - 1), 2),
            "over_time": [round(one) for one in values[:: max(1, len(values) // 12)]],
        }
    return found


def look_after(servers: Servers, model: str, question: dict[str, Any]) -> Result:
    """Wait until nothing runs any more; tell what is left after half a minute, and ask once more."""
    end = time.monotonic() + 30
    while True:
        queues = [servers.queue_of(port) for port in servers.worker_ports]
        left = {"workers": queues, "streams": servers.streams()}
        if (not any(queues) and None not in queues and not left["streams"]) or time.monotonic() > end:
            break
        time.sleep(0.2)
    reply = httpx2.post(f"{servers.url}/v1/chat/completions", json={"model": model, **question}, timeout=60)
    return {**left, "answers_again": reply.status_code == 200}


def faults(result: Result, growth: float) -> list[str]:
    """Say what is not as it should be."""
    found = [f"lost: {one}" for one in result["lost"][:10]]
    left = result["left"]
    if any(left["workers"]) or None in left["workers"] or left["streams"]:
        found.append(f"left over: {left}")
    if not left["answers_again"]:
        found.append("the servers do not answer any more")
    if not result["answers"]:
        found.append("nothing was answered")
    for name, one in result["memory"].items():
        if one["growth_percent"] > growth:
            found.append(f"the memory of {name} has grown by {one['growth_percent']} %")
    return found


def measure(args: argparse.Namespace, logs: Path) -> Result:
    """Run everything and return the numbers."""
    questions = make_questions(args.images, args.image_size, args.max_tokens)
    plain = ask_directly(args, questions)
    servers = Servers(args.model_path, args.device, logs, workers=args.workers, running=args.running)
    try:
        servers.start()
        load = Load(servers.url, servers.name, questions)
        began = time.monotonic()
        memory = asyncio.run(run_load(servers, load, args))
        seconds = time.monotonic() - began
        for port in servers.worker_ports:
            wait_until(lambda port=port: servers.queue_of(port) is not None, 180)
        left = look_after(servers, servers.name, questions[0])
    finally:
        servers.stop()
    seen = load.seen
    rate = round(seen.tokens / seconds, 1)
    return {
        **{name: vars(args)[name] for name in ("clients", "seconds", "workers", "kills", "device")},
        "answers": seen.answers,
        "refused": seen.refused,
        "vanished": seen.vanished,
        "errors": dict(seen.errors),
        "lost": seen.lost,
        "left": left,
        "memory": growth_of(memory),
        "first_token_seconds": spread(seen.first),
        "tokens_per_second": rate,
        "direct": plain,
        "ratio": round(rate / plain["tokens_per_second"], 2),
    }


def main() -> None:
    """Run it and print one JSON object; exit code 1 when something was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", required=True, help="checkpoint")
    parser.add_argument(
        "--images", type=Path, default=None, help="folder of PNG files (default: plain colours)"
    )
    parser.add_argument("--image-size", type=int, default=336, help="side of the plain images")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument(
        "--patience", type=float, default=180, help="seconds more than --seconds that the load may last"
    )
    parser.add_argument("--direct-seconds", type=float, default=15)
    parser.add_argument("--workers", type=int, default=2, help="workers; the last of them is killed")
    parser.add_argument("--running", type=int, default=8, help="answers at a time of a worker")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--growth", type=float, default=5, help="percent that memory may grow")
    parser.add_argument("--logs", type=Path, default=None, help="folder for the logs (default: not kept)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        logs = args.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        result = measure(args, logs)
        result["faults"] = faults(result, args.growth)
        if result["faults"]:
            for log in sorted(logs.glob("*.log")):
                sys.stderr.write(f"---- {log.name}\n{log.read_text(errors='replace')[-3000:]}\n")
            sys.stderr.write("\n".join(result["faults"]) + "\n")
    json.dump(result, sys.stdout, indent=1)
    print()
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
