"""The table of tasks: name -> where its class is. A task's file is imported when it is used."""

from __future__ import annotations

import importlib
from difflib import get_close_matches

from llava.eval.tasks.base import Task
from llava.utils import UserError

TASKS: dict[str, str] = {
    "vqav2": "llava.eval.tasks.short.vqav2:VQAv2",
    "gqa": "llava.eval.tasks.short.gqa:GQA",
    "vizwiz": "llava.eval.tasks.short.vizwiz:VizWiz",
    "science_qa": "llava.eval.tasks.choice.science_qa:ScienceQA",
    "textvqa": "llava.eval.tasks.short.textvqa:TextVQA",
    "pope": "llava.eval.tasks.yes_no.pope:POPE",
    "mme": "llava.eval.tasks.yes_no.mme:MME",
    "mmbench": "llava.eval.tasks.choice.mmbench:MMBench",
    "mmbench_cn": "llava.eval.tasks.choice.mmbench:MMBenchCN",
    "qbench": "llava.eval.tasks.choice.qbench:QBench",
    "qbench_zh": "llava.eval.tasks.choice.qbench_zh:QBenchZh",
    "seed": "llava.eval.tasks.choice.seed:SEED",
    "chartqa": "llava.eval.tasks.short.chartqa:ChartQA",
    "docvqa": "llava.eval.tasks.short.docvqa:DocVQA",
    "infovqa": "llava.eval.tasks.short.docvqa:InfoVQA",
    "ai2d": "llava.eval.tasks.choice.ai2d:AI2D",
    "mmmu": "llava.eval.tasks.choice.mmmu:MMMU",
    "mathvista": "llava.eval.tasks.choice.mathvista:MathVista",
    "realworldqa": "llava.eval.tasks.choice.realworldqa:RealWorldQA",
    "hallusionbench": "llava.eval.tasks.yes_no.hallusionbench:HallusionBench",
    "coco_caption": "llava.eval.tasks.short.captions:COCOCaption",
    "nocaps": "llava.eval.tasks.short.captions:NoCaps",
    "digits": "llava.eval.tasks.digits:Digits",
    "llava_bench": "llava.eval.tasks.judged.llava_bench:LlavaBench",
    "coco_qa90": "llava.eval.tasks.judged.coco_qa90:CocoQa90",
    "mm_vet": "llava.eval.tasks.judged.mm_vet:MmVet",
    "vicuna80": "llava.eval.tasks.judged.vicuna80:Vicuna80",
    "science_qa_gpt": "llava.eval.tasks.judged.science_qa_gpt:ScienceQAWithGPT",
    "custom": "llava.eval.tasks.custom:Custom",
}


def task_names() -> list[str]:
    """Return the names of all tasks, in the order of the table."""
    return list(TASKS)


def task_named(name: str) -> Task:
    """Return a task; raises UserError that lists the known ones."""
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there is no task {name!r}{meant}; the tasks are {', '.join(TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    task = getattr(importlib.import_module(module), attribute)()
    assert isinstance(task, Task)
    return task
