"""From the flags to what is asked: a checkpoint that is loaded here, or a client of a server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llava.eval.run.asking import Asker
from llava.eval.run.flags import check_one_model
from llava.eval.run.local import LocalModel
from llava.eval.run.server import ServerModel
from llava.eval.tasks.base import Task
from llava.inference.model import LoadedModel
from llava.inference.program import open_from_flags, quiet_libraries
from llava.inference.prompt import pick_conv_mode
from llava.inference.sampling import SamplingParams
from llava.mm_utils import get_model_name_from_path
from llava.model.checkpoints.checksums import fingerprint
from llava.model.checkpoints.files import ADAPTER_CONFIG_FILE, CONFIG_FILE, find_file
from llava.model.plan import look_into
from llava.utils import check_whole

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", ADAPTER_CONFIG_FILE)


class Opener:
    """Gives what the questions of a task are put to; a checkpoint is loaded once, when it is wanted."""

    def __init__(self, args: argparse.Namespace) -> None:
        check_one_model(args)
        self._args = args
        params_of(args, Task)
        check_whole("--batch-size", args.batch_size, 1)
        for name in filter(None, (args.model_path, args.model_base)):
            find_file(name, CONFIG_FILE)  # a wrong path is told before the questions are read
        self._loaded: LoadedModel | None = None
        self._weights: str | None = None
        self._name = "" if args.model_path is None else get_model_name_from_path(args.model_path)

    @property
    def model_id(self) -> str:
        """What records and files call the model."""
        return self._name or self._args.model or "server"

    def open(self, task: Task) -> Asker:
        """Return the model with the settings for a task. Raises UserError."""
        args = self._args
        params = params_of(args, task)
        if args.base_url is not None:
            server = ServerModel(
                args.base_url,
                params,
                api_key=args.api_key or os.environ.get("OPENAI_API_KEY"),
                model=args.model,
                concurrency=args.concurrency,
                retries=args.retries,
                timeout_s=args.request_timeout,
            )
            self._name = server.model_id
            return server
        if self._loaded is None:
            quiet_libraries()
            self._loaded = open_from_flags(args)
            self._weights = weights_of(args.model_path, args.model_base)
        conv_mode, why = pick_conv_mode(args.conv_mode, self._name, self._loaded.model.config)
        return LocalModel(
            self._loaded,
            params,
            model_id=self._name,
            conv_mode=conv_mode,
            why=why,
            batch_size=args.batch_size,
            weights=self._weights,
            facts={"model_path": args.model_path, "model_base": args.model_base},
        )


def params_of(args: argparse.Namespace, task: Task | type[Task]) -> SamplingParams:
    """Return the settings of answers: the given ones, else the task's."""
    return SamplingParams(
        temperature=task.temperature if args.temperature is None else args.temperature,
        top_p=args.top_p,
        num_beams=args.num_beams,
        max_new_tokens=task.max_new_tokens if args.max_new_tokens is None else args.max_new_tokens,
        seed=args.seed,
    )


def weights_of(model_path: str, model_base: str | None = None) -> str | None:
    """Return a fingerprint of the weights of a checkpoint and its base; None where there are no files.

    Of an adapter its settings count as well, and the base that it names itself where none is given.
    """
    found = look_into(model_path)
    base = model_base or (found.recorded_base if found.needs_base else None)
    files: list[Path] = []
    for name in filter(None, (model_path, base)):
        config = find_file(name, CONFIG_FILE) or find_file(name, ADAPTER_CONFIG_FILE)
        folder = Path(name) if config is None else config.parent
        files += sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    return fingerprint(files)
