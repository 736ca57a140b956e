"""--report_to wandb: an offline run leaves its files and calls nobody; without the package, one sentence."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import ROOT, run_group
from recorded_training import flags
from warming import python

from llava.train.args import parse_args
from llava.utils import MissingPackageError

STAGE_1 = "--version plain --tune_mm_mlp_adapter True --data_path {data}/pretrain.json --save_strategy no"


def test_missing_wandb_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError) as caught:
        parse_args(["--data_path", "x.json", "--output_dir", "out", "--report_to", "wandb"])
    message = str(caught.value)
    assert message.startswith("--report_to wandb (drop it with --report_to none) needs the package 'wandb'")
    assert "is not installed. Install it with: pip install" in message and "\n" not in message


@contextmanager
def _listener() -> Iterator[tuple[str, list[str]]]:
    """Listen as a proxy that refuses everything: its address, and the first line of each call."""
    calls: list[str] = []

    def answer() -> None:
        while True:
            try:
                caller, _ = server.accept()
            except OSError:  # the listener was closed
                return
            with caller:
                caller.settimeout(5)
                calls.append(caller.recv(4096).split(b"\r\n")[0].decode("latin1"))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


@pytest.mark.slow
def test_an_offline_run_writes_its_files_and_calls_nobody(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{STAGE_1} --max_steps 2 --report_to wandb")
    with _listener() as (address, calls):
        proxies = {name: address for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
        output = run_group(
            [python(), str(ROOT / "llava/train/train_mem.py"), *argv],
            240,
            WANDB_MODE="offline",
            WANDB_DIR=str(tmp_path),
            WANDB_BASE_URL=address,
            NO_PROXY="",
            no_proxy="",
            **proxies,
        )
    assert calls == [], output
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = folder.glob("run-*.wandb")
    content = log.read_bytes()
    for key in (b"train/loss", b"train/loss_image", b"train/learning_rate"):
        assert key in content
    assert (tmp_path / "out" / "mm_projector.bin").exists()
