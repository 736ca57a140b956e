"""Each benchmark in miniature, in the format its authors publish; the questions are made up."""

from __future__ import annotations

from written import Example

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

GQA = Example(
    "gqa",
    {
        "data/questions1.2/testdev_balanced_questions.json": {
            "201": {
                "question": "Is it red?",
                "imageId": "n16",
                "answer": "yes",
                "types": {"structural": "verify"},
            },
            "202": {
                "question": "What is it?",
                "imageId": "n16",
                "answer": "bus",
                "types": {"structural": "query"},
            },
            "203": {
                "question": "Who drives?",
                "imageId": "n17",
                "answer": "man",
                "types": {"structural": "query"},
            },
        }
    },
    ["Yes.", "bus", "MAN"],
    {
        "llava_gqa_testdev_balanced.jsonl": [
            {"question_id": "201", "image": "n16.jpg", "text": "Is it red?" + SHORT, "category": "default"},
            {"question_id": "202", "image": "n16.jpg", "text": "What is it?" + SHORT, "category": "default"},
            {"question_id": "203", "image": "n17.jpg", "text": "Who drives?" + SHORT, "category": "default"},
        ]
    },
)


def _pope(category: str) -> list[dict[str, object]]:
    objects = {"adversarial": ("cup", "fork"), "popular": ("car", "dog"), "random": ("kite", "bear")}[
        category
    ]
    return [
        {
            "question_id": 1,
            "image": "COCO_val2014_01.jpg",
            "text": f"Is there a {objects[0]} in the image?",
            "label": "yes",
        },
        {
            "question_id": 2,
            "image": "COCO_val2014_01.jpg",
            "text": f"Is there a {objects[1]} in the image?",
            "label": "no",
        },
    ]


POPE = Example(
    "pope",
    {f"coco/coco_pope_{one}.json": _pope(one) for one in ("random", "popular", "adversarial")},
    ["Yes", "No", "yes", "no.", "Yes, there is.", "There is not a bear"],
    {
        "llava_pope_test.jsonl": [
            {
                "question_id": number,
                "image": row["image"],
                "text": f"{row['text']}{SHORT}",
                "category": category,
            }
            for number, (category, row) in enumerate(
                ((name, row) for name in ("adversarial", "popular", "random") for row in _pope(name)), start=1
            )
        ]
    },
    annotation="annotation-dir",
)


def _seed(number: int | str, medium: str, kind: int, data: str, answer: str) -> dict[str, object]:
    options = {
        f"choice_{letter}": word for letter, word in zip("abcd", ("One", "Two", "Three", "Four"), strict=True)
    }
    return options | {
        "answer": answer,
        "data_id": data,
        "data_type": medium,
        "question": f"How many in {data}?",
        "question_id": str(number),
        "question_type_id": kind,
        "segment": [0, 1],
    }


_SEED_TEXT = "How many in {}?\nA. One\nB. Two\nC. Three\nD. Four" + LETTER
SEED = Example(
    "seed",
    {
        "SEED-Bench.json": {
            "question_type": {"Instances Counting": 5, "Action Recognition": 10},
            "questions": [
                _seed(101, "image", 5, "145_259", "A"),
                _seed(102, "image", 5, "145_260", "C"),
                _seed("v7", "video", 10, "1.webm", "D"),
            ],
        }
    },
    ["A", "C", "D"],
    {
        "llava-seed-bench.jsonl": [
            {
                "question_id": 101,
                "image": "SEED-Bench-image/145_259",
                "text": _SEED_TEXT.format("145_259"),
                "category": "Instances Counting",
            },
            {
                "question_id": 102,
                "image": "SEED-Bench-image/145_260",
                "text": _SEED_TEXT.format("145_260"),
                "category": "Instances Counting",
            },
            {
                "question_id": "v7",
                "image": "SEED-Bench-video-image/10_v7.png",
                "text": _SEED_TEXT.format("1.webm"),
                "category": "Action Recognition",
            },
        ]
    },
)

EXAMPLES = [GQA, POPE, SEED]
