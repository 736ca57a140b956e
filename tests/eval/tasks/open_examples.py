"""Benchmarks of open questions in miniature: VQAv2, VizWiz and TextVQA."""

from __future__ import annotations

from written import SHORT, Example


def people(*told: str) -> list[dict[str, object]]:
    """Return ten answers of people: those told, the last one as often as it takes."""
    words = [*told, *[told[-1]] * (10 - len(told))]
    return [
        {"answer": word, "answer_confidence": "yes", "answer_id": number}
        for number, word in enumerate(words, start=1)
    ]


_VQA = [
    {"image_id": 42, "question": "What sport is it?", "question_id": 420},
    {"image_id": 42, "question": "How many?", "question_id": 421},
    {"image_id": 43, "question": "Is it wet?", "question_id": 430},
]


def _vqa_lines(half: str) -> list[dict[str, object]]:
    return [
        {
            "question_id": row["question_id"],
            "image": f"COCO_{half}_{row['image_id']:012d}.jpg",
            "text": f"{row['question']}{SHORT}",
            "category": "default",
        }
        for row in _VQA
    ]


VQAV2 = Example(
    "vqav2",
    {
        "v2_OpenEnded_mscoco_val2014_questions.json": {"data_type": "mscoco", "questions": _VQA},
        "v2_mscoco_val2014_annotations.json": {
            "annotations": [
                {"question_id": 430, "answers": people("no", "yes"), "answer_type": "yes/no", "image_id": 43},
                {"question_id": 420, "answers": people("tennis"), "answer_type": "other", "image_id": 42},
                {"question_id": 421, "answers": people("3", "2"), "answer_type": "number", "image_id": 42},
            ]
        },
    },
    ["Tennis.", "two", "Yes"],
    {"llava_vqav2_mscoco_val2014.jsonl": _vqa_lines("val2014")},
    split="val2014",
)
VQAV2_TEST = Example(
    "vqav2",
    {"v2_OpenEnded_mscoco_test-dev2015_questions.json": {"questions": _VQA}},
    ["Tennis.", "two", "Yes"],
    {
        "llava_vqav2_mscoco_test-dev2015.jsonl": _vqa_lines("test2015"),
        "llava_vqav2_mscoco_test2015.jsonl": [{"question_id": number} for number in (419, 420, 421, 430)],
    },
    score=None,
    split="test-dev2015",
    annotation="questions",
)

INSUFFICIENT = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT
VIZWIZ = Example(
    "vizwiz",
    {
        "val.json": [
            {
                "image": "VizWiz_val_0.jpg",
                "question": "What is it?",
                "answers": people("cup"),
                "answer_type": "other",
                "answerable": 1,
            },
            {
                "image": "VizWiz_val_1.jpg",
                "question": "Read it.",
                "answers": people("unanswerable"),
                "answer_type": "unanswerable",
                "answerable": 0,
            },
        ]
    },
    ["A cup", "Unanswerable"],
    split="val",
)
VIZWIZ_TEST = Example(
    "vizwiz",
    {
        "test.json": [
            {"image": "VizWiz_test_0.jpg", "question": "What is it?"},
            {"image": "VizWiz_test_1.jpg", "question": "Read it."},
        ]
    },
    ["A cup", "It's 1,000."],
    {
        "llava_test.jsonl": [
            {"question_id": image, "image": image, "text": text + INSUFFICIENT, "category": "default"}
            for image, text in (("VizWiz_test_0.jpg", "What is it?"), ("VizWiz_test_1.jpg", "Read it."))
        ]
    },
    score=None,
)

TEXTVQA = Example(
    "textvqa",
    {
        "TextVQA_0.5.1_val.json": {
            "data": [
                {
                    "question_id": 34602,
                    "image_id": "00f1",
                    "question": "what brand is it?",
                    "answers": ["dakota"] * 10,
                },
                {
                    "question_id": 34603,
                    "image_id": "00f1",
                    "question": "What number?",
                    "answers": ["7"] * 9 + ["seven"],
                },
                {
                    "question_id": 34604,
                    "image_id": "00f2",
                    "question": "what time?",
                    "answers": ["10:00"] * 10,
                },
            ]
        },
        "TextVQA_Rosetta_OCR_v0.2_val.json": {
            "data": [
                {"image_id": "00f1", "ocr_tokens": ["DAKOTA", "7"]},
                {"image_id": "00f2", "ocr_tokens": []},
            ]
        },
    },
    ["Dakota.", "seven", "10:00"],
    {
        "llava_textvqa_val_v051_ocr.jsonl": [
            {
                "question_id": image,
                "image": f"{image}.jpg",
                "text": f"{text}\nReference OCR token: {tokens}{SHORT}",
            }
            for image, text, tokens in (
                ("00f1", "what brand is it?", "DAKOTA, 7"),
                ("00f1", "What number?", "DAKOTA, 7"),
                ("00f2", "what time?", ""),
            )
        ]
    },
)
