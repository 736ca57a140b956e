"""Benchmarks that the reference has no program for, in miniature and in their published formats."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from written import Example

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
IMAGE = {"bytes": PIXEL, "path": "1.png"}


def parquet(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write a parquet file."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)


CHARTQA = Example(
    "chartqa",
    {
        "test/test_human.json": [
            {"imgname": "1.png", "query": "What is the total?", "label": "120"},
            {"imgname": "1.png", "query": "Which one leads?", "label": "Chad"},
        ],
        "test/test_augmented.json": [{"imgname": "2.png", "query": "What is the share?", "label": "0.5"}],
    },
    ["125", "chad.", "51%"],
    annotation="annotation-dir",
)
DOCVQA = Example(
    "docvqa",
    {
        "val_v1.0_withQT.json": {
            "data": [
                {
                    "questionId": 49153,
                    "question": "What is the date?",
                    "image": "documents/a_1.png",
                    "answers": ["1/8/93"],
                },
                {
                    "questionId": 49154,
                    "question": "Who?",
                    "image": "documents/a_2.png",
                    "answers": ["P. Carter", "p. carter"],
                },
            ]
        }
    },
    ["1/8/93", "P.  CARTER"],
)
INFOVQA = Example(
    "infovqa",
    {
        "infographicsVQA_val_v1.0_withQT.json": {
            "data": [
                {"questionId": 1, "question": "How many?", "image_local_name": "2.jpeg", "answers": ["7"]},
                {"questionId": 2, "question": "Who?", "image_local_name": "2.jpeg", "answers": ["all"]},
            ]
        }
    },
    ["7", "all"],
)
_DIAGRAM = {
    "abcLabel": False,
    "answerTexts": ["sun", "moon", "star", "sea"],
    "correctAnswer": 1,
    "questionId": "0.png-1",
}
AI2D = Example(
    "ai2d",
    {
        "ai2d_test_ids.csv": "0\n3\n",
        "questions/0.png.json": {"imageName": "0.png", "questions": {"What is up?": _DIAGRAM}},
        "questions/3.png.json": {
            "imageName": "3.png",
            "questions": {"What is down?": _DIAGRAM | {"questionId": "3.png-1", "correctAnswer": 3}},
        },
        "questions/4.png.json": {"imageName": "4.png", "questions": {}},
    },
    ["B", "D. sea"],
    annotation="annotation-dir",
)  # fmt: skip


def _mmmu(folder: Path) -> None:
    usual = {f"image_{number}": None for number in range(3, 8)} | {"image_1": IMAGE, "image_2": IMAGE}
    choice = {
        "question": "See <image 1>. Which?",
        "options": "['$6', '<image 2>']",
        "question_type": "multiple-choice",
    }
    opened = {"question": "How much in <image 1>?", "options": "[]", "question_type": "open"}
    parquet(
        folder,
        "Art/validation-00000-of-00001.parquet",
        [
            usual | choice | {"id": "validation_Art_1", "answer": "B"},
            usual | opened | {"id": "validation_Art_2", "answer": "['1,200', '1200 dollars']"},
        ],
    )
    parquet(
        folder,
        "Art_Theory/validation-00000-of-00001.parquet",
        [usual | choice | {"id": "validation_Art_Theory_1", "answer": "A"}],
    )


MMMU = Example("mmmu", {}, ["B", "1200", "(A) $6"], annotation="question-file", build=_mmmu)


def _mathvista(folder: Path) -> None:
    row = {"question": "Which?", "decoded_image": IMAGE, "metadata": {"task": "geometry problem solving"}}
    parquet(
        folder,
        "data/testmini-00000-of-00001-7d.parquet",
        [
            row
            | {"pid": "1", "choices": ["(A) 6", "(B) 7"], "answer": "(B) 7", "question_type": "multi_choice"},
            row | {"pid": "2", "choices": None, "answer": "1.2", "question_type": "free_form"},
            row | {"pid": "3", "choices": ["Yes", "No"], "answer": "No", "question_type": "multi_choice"},
        ],
    )


MATHVISTA = Example("mathvista", {}, ["B", "No"], annotation="question-file", build=_mathvista)


def _realworldqa(folder: Path) -> None:
    parquet(
        folder,
        "data/test-00000-of-00002.parquet",
        [
            {
                "image": IMAGE,
                "question": "How many? Please answer with a number.",
                "answer": "Two",
            },
            {
                "image": IMAGE,
                "question": "Which way?\n\nA. Left\nB. Right",
                "answer": "B",
            },
        ],
    )


REALWORLDQA = Example("realworldqa", {}, ["two.", "B. Right"], annotation="question-file", build=_realworldqa)


def _hallusion(figure: str, question: str, answer: str, category: str = "VD") -> dict[str, Any]:
    numbers = {"set_id": "0", "figure_id": figure, "question_id": question}
    file = None if figure == "0" else f"./hallusion_bench/{category}/0_{figure}.png"
    texts = {
        "question": f"Is {question} in {figure}?",
        "gt_answer": answer,
        "gt_answer_details": "",
        "filename": file,
    }
    return (
        {"category": category, "subcategory": "illusion", "visual_input": "1", "sample_note": ""}
        | numbers
        | texts
    )


HALLUSIONBENCH = Example(
    "hallusionbench",
    {
        "HallusionBench.json": [
            _hallusion("1", "0", "1"),
            _hallusion("2", "0", "0"),
            _hallusion("1", "1", "1"),
            _hallusion("0", "0", "1", "VS"),
        ]
    },
    ["Yes", "No, it is not", "yes", "I think yes"],
)
_IMAGES = {
    "images": [{"id": 42, "file_name": "COCO_val2014_42.jpg"}, {"id": 7, "file_name": "COCO_val2014_07.jpg"}]
}
_CAPTIONS = [
    {"image_id": 7, "id": 1, "caption": "The cat sits there."},
    {"image_id": 42, "id": 2, "caption": "A big dog runs."},
]
COCO_CAPTION = Example(
    "coco_caption",
    {"annotations/captions_val2014.json": _IMAGES | {"annotations": _CAPTIONS}},
    ["a big dog runs", "The cat sits there. "],
    score=1000.0,
)
NOCAPS = Example("nocaps", {"nocaps_val_4500_captions.json": _IMAGES}, ["a dog", "a cat"], score=None)

BEYOND = [
    CHARTQA, DOCVQA, INFOVQA, AI2D, MMMU, MATHVISTA, REALWORLDQA, HALLUSIONBENCH, COCO_CAPTION, NOCAPS
]  # fmt: skip
