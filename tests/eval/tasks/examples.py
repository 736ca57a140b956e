"""Each benchmark in miniature, in the format its authors publish; the questions are made up."""

from __future__ import annotations

from beyond import BEYOND
from open_examples import TEXTVQA, VIZWIZ, VIZWIZ_TEST, VQAV2, VQAV2_TEST
from written import SHORT, Example

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


_RELEASE = "MME_Benchmark_release_version"


def _mme(yes: str, no: str) -> str:
    return f"{yes}Please answer yes or no.\tYes\n{no}Please answer yes or no.\tNo\n"


MME = Example(
    "mme",
    {
        f"{_RELEASE}/artwork/questions_answers_YN/10002.txt": _mme("Is it  oil? ", "Is it new? "),
        f"{_RELEASE}/artwork/images/10002.jpg": "an image",
        f"{_RELEASE}/code_reasoning/0020.txt": _mme("Is it C? ", "Is it Go?  "),
        f"{_RELEASE}/code_reasoning/0020.png": "an image",
    },
    ["Yes", "no", "yes, it is", "No."],
    {
        "llava_mme.jsonl": [
            {"question_id": name, "image": image, "text": text + SHORT, "category": name.partition("/")[0]}
            for name, image, text in (
                ("artwork/10002.jpg", "artwork/images/10002.jpg", "Is it  oil?"),
                ("artwork/10002.jpg", "artwork/images/10002.jpg", "Is it new?"),
                ("code_reasoning/0020.png", "code_reasoning/0020.png", "Is it C?"),
                ("code_reasoning/0020.png", "code_reasoning/0020.png", "Is it Go?"),
            )
        ]
    },
    score=200.0,
    annotation="annotation-dir",
)

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
MMBENCH_COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
MMBENCH_COLUMNS += ["source", "l2-category", "comment", "split"]


def mmbench_table(*rows: dict[str, object]) -> str:
    """Return a table in MMBench's format."""
    usual = {
        "image": PIXEL,
        "category": "color",
        "l2-category": "perception",
        "source": "made",
        "split": "dev",
    }
    lines = ["\t".join(MMBENCH_COLUMNS)]
    lines += ["\t".join(str((usual | row).get(name, "")) for name in MMBENCH_COLUMNS) for row in rows]
    return "\n".join(lines) + "\n"


_COLOUR = {"question": "Which colour?", "hint": "Look."}
_TABLE = mmbench_table(
    _COLOUR | {"index": 7, "A": "red", "B": "blue", "answer": "A"},
    _COLOUR | {"index": 1000007, "A": "blue", "B": "red", "answer": "B"},
    {"index": 8, "question": "How many?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "D"},
)
MMBENCH = Example(
    "mmbench", {"mmbench_dev_20230712.tsv": _TABLE}, ["A", "B.", "D"], annotation="question-file"
)
MMBENCH_CN = Example(
    "mmbench_cn", {"mmbench_dev_cn_20231003.tsv": _TABLE}, ["A", "(B)", "4"], annotation="question-file"
)
MMBENCH_TEST = Example(
    "mmbench",
    {"mmbench_test_20230712.tsv": _TABLE},
    ["A", "B.", "D"],
    split="test",
    annotation="question-file",
)
ALL_ROUNDS = Example(
    "mmbench",
    {"mmbench_dev_20230712.tsv": _TABLE},
    ["A", "B", "B", "A", "D", "C", "B", "A"],
    options={"all-rounds": "yes"},
    annotation="question-file",
)

_QBENCH = [
    {
        "img_path": "0001.jpg",
        "question": "Is it sharp?",
        "candidates": ["Yes", "No"],
        "correct_ans": "No",
        "type": 0,
        "concern": 1,
    },
    {
        "img_path": "0002.jpg",
        "question": "How is the light?",
        "candidates": ["Dark", "Medium", "Bright"],
        "correct_ans": "Bright",
        "type": 2,
        "concern": 0,
    },
]
QBENCH = Example(
    "qbench",
    {"llvisionqa_dev.json": _QBENCH},
    ["B", "C. Bright"],
    annotation="question-file",
    answer="response",
)
QBENCH_ZH = Example(
    "qbench_zh",
    {"质衡-问答-验证集.json": _QBENCH},
    ["B.", "Bright"],
    annotation="question-file",
    answer="response",
)


def _problem(image: str | None, answer: int, hint: str) -> dict[str, object]:
    return {
        "question": "Which is  heavier?",
        "choices": ["fish", "dog"],
        "answer": answer,
        "hint": hint,
        "image": image,
        "lecture": "",
        "solution": "",
        "split": "test",
        "subject": "natural science",
        "grade": "grade 2",
    }


_SCIENCE = "Context: {}\nQuestion: Which is heavier?\nOptions: (A) fish (B) dog"
SCIENCE_QA = Example(
    "science_qa",
    {
        "problems.json": {
            "4": _problem("image.png", 1, "Look."),
            "5": _problem(None, 0, ""),
            "6": _problem(None, 0, ""),
        },
        "pid_splits.json": {"test": ["4", "5"], "val": ["6"]},
    },
    ["B", "The answer is A."],
    {
        "llava_test_CQM-A.json": [
            {
                "id": "4",
                "image": "4/image.png",
                "conversations": [
                    {"from": "human", "value": _SCIENCE.format("Look.") + "\n<image>"},
                    {"from": "gpt", "value": "B"},
                ],
            },
            {
                "id": "5",
                "conversations": [
                    {"from": "human", "value": _SCIENCE.format("N/A")},
                    {"from": "gpt", "value": "A"},
                ],
            },
        ]
    },
    annotation="base-dir",
)

EXAMPLES = [GQA, POPE, SEED, MME, MMBENCH, MMBENCH_CN, MMBENCH_TEST, ALL_ROUNDS, QBENCH, QBENCH_ZH]
EXAMPLES += [VQAV2, VQAV2_TEST, VIZWIZ, VIZWIZ_TEST, TEXTVQA, SCIENCE_QA]
EXAMPLES += BEYOND
