"""Runs one training after another in each process of a launch, and writes down what each of them did.

usage: torchrun --nproc_per_node 2 worker.py SPEC.json, or python worker.py SPEC.json
SPEC: {"folder": where the reports go, "limit_s": seconds, "runs": [{"name": ..., "argv": [...]}, ...]}
Report NAME-RANK.json: losses, rates and norms a step; steps; calls {tower, projector, embedding}, images
and image tokens a micro-batch; split (how the weights were divided).
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

IMAGE = -200
SPLIT_MARKS = {"zero3": "ds_id", "fsdp2": "full_tensor"}

report: dict[str, Any] = {}
calls: dict[str, int] = {}


def count(name: str) -> None:
    """Count a call in the present micro-batch."""
    calls[name] = calls.get(name, 0) + 1


def observe() -> None:
    """Wrap tower and trainer so that `report` fills while it trains, and samples are read in their order."""
    tower_forward = CLIPVisionTower.forward
    training_step, train = LLaVATrainer.training_step, LLaVATrainer.train

    def counted_tower(self: Any, *args: Any, **kwargs: Any) -> Any:
        count("tower")
        return tower_forward(self, *args, **kwargs)

    def step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        calls.clear()
        loss = training_step(self, model, inputs, *args, **kwargs)
        report["calls"].append(dict(calls))
        report["images"].append(len(inputs["images"]))
        report["marks"].append(int((inputs["input_ids"] == IMAGE).sum()))
        return loss

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        projector = self.model.get_model().mm_projector
        projector.register_forward_pre_hook(lambda *_: count("projector"))
        self.model.get_input_embeddings().register_forward_pre_hook(lambda *_: count("embedding"))
        report.update(calls=[], images=[], marks=[])
        result = train(self, *args, **kwargs)
        for name, key in (("losses", "loss"), ("rates", "learning_rate"), ("norms", "grad_norm")):
            report[name] = [float(entry[key]) for entry in self.state.log_history if key in entry]
        report["steps"] = self.state.global_step
        params = list(self.model.parameters())
        report["split"] = [
            name for name, mark in SPLIT_MARKS.items() if all(hasattr(p, mark) for p in params)
        ]
        return result

    CLIPVisionTower.forward = counted_tower  # type: ignore[method-assign]
    LLaVATrainer.training_step = step  # type: ignore[method-assign]
    LLaVATrainer.train = watched  # type: ignore[method-assign]
    LLaVATrainer._get_train_sampler = (  # type: ignore[method-assign]
        lambda self, *args: SequentialSampler(self.train_dataset)
    )


def main() -> None:
    """Do all runs of the specification."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    faulthandler.dump_traceback_later(spec["limit_s"], exit=True)  # a hang ends, and shows where it was
    rank = os.environ.get("RANK", "0")
    observe()
    gc.freeze()  # a collection after each run looks at what the runs made, not at all modules
    for run in spec["runs"]:
        report.clear()
        sys.argv = ["train.py", *run["argv"]]
        train_module.train()
        (Path(spec["folder"]) / f"{run['name']}-{rank}.json").write_text(json.dumps(report))
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
            del os.environ[name]  # what a run told accelerate holds for that run
        gc.collect()  # the DeepSpeed config of a run lives as long as its trainer


if __name__ == "__main__":
    main()
