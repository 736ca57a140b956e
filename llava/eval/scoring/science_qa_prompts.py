"""ScienceQA's problems as prompts and answers, in the reference's formats such as QCM-LEPA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.atomic import write_text
from llava.eval.tasks.files import TEXT, check_row, read_by_id, read_object
from llava.utils import UserError

Problem = Mapping[str, Any]
OPTIONS = ("A", "B", "C", "D", "E")

# {q} question, {c} context, {o} options, {l} lecture, {s} solution, {a} letter of the answer
INPUTS = {
    "CQM": "Context: {c}\nQuestion: {q}\nOptions: {o}\n",
    "QCM": "Question: {q}\nContext: {c}\nOptions: {o}\n",
    "QCML": "Question: {q}\nContext: {c}\nOptions: {o}\nBECAUSE: {l}",
    "QCME": "Question: {q}\nContext: {c}\nOptions: {o}\nBECAUSE: {s}",
    "QCMLE": "Question: {q}\nContext: {c}\nOptions: {o}\nBECAUSE: {l} {s}",
    "QCLM": "Question: {q}\nContext: {c}\nBECAUSE: {l}\nOptions: {o}\n",
    "QCEM": "Question: {q}\nContext: {c}\nBECAUSE: {s}\nOptions: {o}\n",
    "QCLEM": "Question: {q}\nContext: {c}\nBECAUSE: {l} {s}\nOptions: {o}\n",
}
# AL has the solution and AE the lecture: the reference's letters stand so
OUTPUTS = {
    "A": "Answer: The answer is {a}.",
    "AL": "Answer: The answer is {a}. BECAUSE: {s}",
    "AE": "Answer: The answer is {a}. BECAUSE: {l}",
    "ALE": "Answer: The answer is {a}. BECAUSE: {l} {s}",
    "AEL": "Answer: The answer is {a}. BECAUSE: {s} {l}",
    "LA": "Answer: {l} The answer is {a}.",
    "EA": "Answer: {s} The answer is {a}.",
    "LEA": "Answer: {l} {s} The answer is {a}.",
    "ELA": "Answer: {s} {l} The answer is {a}.",
    "LEPA": "{lecture_line}{solution_line}###\nANSWER: {a}.",
}


def get_question_text(problem: Problem) -> str:
    """Return the question."""
    return problem["question"]


def get_context_text(problem: Problem, use_caption: bool) -> str:
    """Return the hint, with the image's caption if wanted; "N/A" for nothing."""
    caption = problem["caption"] if use_caption else ""
    return " ".join([problem["hint"], caption]).strip() or "N/A"


def get_choice_text(problem: Problem, options: Sequence[str]) -> str:
    """Return the choices on one line: (A) one (B) two."""
    return " ".join(f"({letter}) {one}" for letter, one in zip(options, problem["choices"], strict=False))


def get_answer(problem: Problem, options: Sequence[str]) -> str:
    """Return the letter of the answer."""
    return options[problem["answer"]]


def get_lecture_text(problem: Problem) -> str:
    """Return the lecture; a backslash and an n are a line break."""
    return problem["lecture"].replace("\\n", "\n")


def get_solution_text(problem: Problem) -> str:
    """Return the solution; a backslash and an n are a line break."""
    return problem["solution"].replace("\\n", "\n")


def build_prompt_chatbot(
    problems: Mapping[str, Problem],
    shot_qids: Sequence[str],
    prompt_format: str,
    use_caption: bool = False,
    options: Sequence[str] = OPTIONS,
    is_test: bool = False,
) -> dict[str, tuple[str, str]]:
    """Return id -> (prompt, answer); is_test leaves the answer open. Raises UserError for other formats."""
    first, _, second = prompt_format.partition("-")
    if first not in INPUTS or second not in OUTPUTS:
        raise UserError(
            f"the prompt format is {prompt_format!r}; expected one of {', '.join(INPUTS)}, a hyphen, and one "
            f"of {', '.join(OUTPUTS)}"
        )
    made = {}
    for identity in shot_qids:
        problem = problems[identity]
        lecture, solution = get_lecture_text(problem).strip(), get_solution_text(problem).strip()
        parts = {
            "q": get_question_text(problem),
            "c": get_context_text(problem, use_caption),
            "o": get_choice_text(problem, options),
            "l": lecture,
            "s": solution,
            "a": get_answer(problem, options),
            "lecture_line": f"LECTURE: {lecture}\n" if lecture else "",
            "solution_line": f"SOLUTION: {solution}\n" if solution else "",
        }
        answer = "Answer:" if is_test else _tidy(OUTPUTS[second].format(**parts))
        made[identity] = (_tidy(INPUTS[first].format(**parts)), answer)
    return made


def _tidy(text: str) -> str:
    """Return a text without double spaces, and without a reason that is not there."""
    return text.replace("  ", " ").strip().removesuffix("BECAUSE:").strip()


def write_llava(base_dir: Path, split: str, prompt_format: str) -> None:
    """Write the problems of a split as training data, llava_SPLIT_FORMAT.json; prints their number."""
    rows = []
    for identity, image, asked, answer in _dialogs(base_dir, split, prompt_format):
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        rows.append({"id": identity, **image, "conversations": turns})
    print(f"Number of samples: {len(rows)}")
    write_text(base_dir / f"llava_{split}_{prompt_format}.json", json.dumps(rows, indent=2))


def write_instructions(base_dir: Path, split: str, prompt_format: str) -> None:
    """Write the problems of a split as JSON lines, scienceqa_SPLIT_FORMAT.jsonl."""
    lines = [
        json.dumps({"id": identity, **image, "instruction": asked, "output": answer})
        for identity, image, asked, answer in _dialogs(base_dir, split, prompt_format)
    ]
    write_text(base_dir / f"scienceqa_{split}_{prompt_format}.jsonl", "".join(f"{one}\n" for one in lines))


def _dialogs(base_dir: Path, split: str, prompt_format: str) -> list[tuple[str, dict[str, str], str, str]]:
    """Return id, image, prompt and answer of each problem of a split. Raises UserError."""
    ids = read_object(base_dir / "pid_splits.json", {split: list})[split]
    assert isinstance(ids, list)
    problems = read_by_id(base_dir / "problems.json", {"choices": list, "answer": int})
    texts = dict.fromkeys(("question", "hint", "lecture", "solution"), TEXT)
    for identity in ids:
        if identity not in problems:
            raise UserError(f"{base_dir / 'problems.json'} has no problem {identity!r} of the split {split}")
        check_row(problems[identity], texts, f"{base_dir / 'problems.json'}, {identity!r}")
    made = []
    for identity, (asked, answer) in build_prompt_chatbot(problems, ids, prompt_format).items():
        if asked.startswith("Question: "):
            asked = asked.replace("Question: ", "")
        if answer.startswith("Answer: "):
            answer = answer.replace("Answer: ", "")
        name = problems[identity].get("image")
        image = {"image": f"{identity}/{name}"} if name else {}
        made.append((str(identity), image, f"{asked}\n<image>" if name else asked, answer))
    return made
