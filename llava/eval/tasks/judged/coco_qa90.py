"""COCO qa90: 90 questions about 30 images of COCO val2014; a judge scores the model beside GPT-4."""

from __future__ import annotations

from typing import ClassVar

from llava.eval.judges.pairs import VISUAL_STYLE
from llava.eval.tasks.base import Ask, DataFile, Record, TaskData
from llava.eval.tasks.judged.pairs import PairTask, image_in

_URL = "https://github.com/haotian-liu/LLaVA/tree/main/playground/data/coco2014_val_qa_eval"
_TABLE = "https://github.com/haotian-liu/LLaVA/tree/main/llava/eval/table"
_LICENCE = "Apache-2.0; captions and boxes of COCO, CC BY 4.0"


class CocoQa90(PairTask):
    """The first LLaVA's benchmark: conversation, detail and complex reasoning, 30 questions of each."""

    name = "coco_qa90"
    title = "COCO qa90"
    folder = "coco2014_val_qa_eval"
    style = VISUAL_STYLE
    data: ClassVar = (
        DataFile("question-file", "qa90_questions.jsonl", "the questions", _URL, _LICENCE, count=90),
        DataFile(
            "image-folder",
            "val2014",
            "the images of COCO val2014",
            "http://images.cocodataset.org/zips/val2014.zip",
            "Flickr's, by image",
        ),
        DataFile("context", "caps_boxes_coco2014_val_80.jsonl", "captions and boxes", _TABLE, _LICENCE),
        DataFile("reference-answers", "qa90_gpt4_answer.jsonl", "GPT-4's answers", _URL, _LICENCE, count=90),
    )

    def ask_of(self, row: Record, data: TaskData) -> Ask:
        """Return a question; the image has its number, or its file's name in COCO."""
        key, image = row["question_id"], str(row["image"])
        assert isinstance(key, str | int)
        path = image_in(data.place(self, "image-folder"), image, "COCO_val2014_")
        return Ask(key, str(row["text"]), (path,), group=image)
