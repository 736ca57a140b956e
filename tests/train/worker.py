"""Runs one training after another in each process of a launch, and writes down what each of them did.

usage: torchrun --nproc_per_node 2 worker.py SPEC.json, or python worker.py SPEC.json
SPEC: {"folder": where the reports go, "runs": [{"name": ..., "argv": [...], "in_order": bool}, ...]}
Report, one a run and rank: {"losses": [...], "rates": [...], "norms": [...], "calls": [{tower, projector,
embedding} a micro-batch], "images": [pictures of a micro-batch]}
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import SequentialSampler

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.train import train as train_module
from llava.train.llava_trainer import LLaVATrainer

report: dict[str, Any] = {}
calls: dict[str, int] = {}


def count(name: str) -> None:
    calls[name] = calls.get(name, 0) + 1


def observe() -> None:
    """Wrap the trainer so that `report` fills while it trains."""
    tower_forward, training_step, train = (
        CLIPVisionTower.forward,
        LLaVATrainer.training_step,
        LLaVATrainer.train,
    )

    def counted_tower(self: Any, *args: Any, **kwargs: Any) -> Any:
        count("tower")
        return tower_forward(self, *args, **kwargs)

    def step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        calls.clear()
        report["images"].append(len(inputs["images"]) if inputs.get("images") is not None else 0)
        report["marks"].append(int((inputs["input_ids"] == -200).sum()))
        loss = training_step(self, model, inputs, *args, **kwargs)
        report["calls"].append(dict(calls))
        return loss

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        inner = self.model.get_model()
        inner.mm_projector.register_forward_pre_hook(lambda *_: count("projector"))
        self.model.get_input_embeddings().register_forward_pre_hook(lambda *_: count("embedding"))
        result = train(self, *args, **kwargs)
        params = list(self.model.parameters())
        kinds = {"zero3": "ds_id", "fsdp2": "full_tensor"}
        report["split"] = [name for name, mark in kinds.items() if all(hasattr(p, mark) for p in params)]
        for name, key in (("losses", "loss"), ("rates", "learning_rate"), ("norms", "grad_norm")):
            report[name] = [float(entry[key]) for entry in self.state.log_history if key in entry]
        report["steps"] = self.state.global_step
        return result

    CLIPVisionTower.forward = counted_tower  # type: ignore[method-assign]
    LLaVATrainer.training_step = step  # type: ignore[method-assign]
    LLaVATrainer.train = watched  # type: ignore[method-assign]


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    faulthandler.dump_traceback_later(spec.get("limit_s", 200), exit=True)  # a hang shows where it hangs
    rank = os.environ.get("RANK", "0")
    observe()
    usual_sampler = LLaVATrainer._get_train_sampler
    for run in spec["runs"]:
        report.clear()
        report.update(images=[], marks=[], calls=[])
        in_order = run.get("in_order", False)
        LLaVATrainer._get_train_sampler = (  # type: ignore[method-assign]
            (lambda self, *args: SequentialSampler(self.train_dataset)) if in_order else usual_sampler
        )
        sys.argv = ["train.py", *run["argv"]]
        train_module.train()
        (Path(spec["folder"]) / f"{run['name']}-{rank}.json").write_text(json.dumps(report))
        gc.collect()  # the DeepSpeed config lives as long as its trainer


if __name__ == "__main__":
    main()
