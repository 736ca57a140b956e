"""MM-Vet: 218 questions that need several capabilities; a judge grades each answer from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from llava.eval.judges.replies import FRACTION
from llava.eval.tasks.base import Ask, DataFile, Record, Report, TaskData
from llava.eval.tasks.files import TEXT, Fields, read_by_id
from llava.eval.tasks.grading import answered
from llava.eval.tasks.judged.grades import grade_items, grades, words
from llava.eval.tasks.judged.judgement import OPTIONS, judge, rules_of
from llava.eval.tasks.questions import QuestionTask, image_folder, question_file

_URL = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
_LICENCE = "research only, by agreement"


class MmVet(QuestionTask):
    """scripts/v1_5/eval/mmvet.sh, greedy; without a judge the file for MM-Vet's own evaluator is written."""

    name = "mm_vet"
    title = "MM-Vet"
    folder = "mm-vet"
    max_new_tokens = 1024
    options = OPTIONS
    data: ClassVar = (
        question_file("llava-mm-vet.jsonl", 218),
        image_folder("images", "the images", _URL, _LICENCE),
        DataFile("annotations", "mm-vet.json", "questions, answers, capabilities", _URL, _LICENCE, count=218),
    )

    def from_originals(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions of mm-vet.json; v1_7 is question 7 of the reference's file."""
        folder = data.place(self, "image-folder")
        for name, row in self._rows(data).items():
            key, image = name.removeprefix("v1_"), str(row["imagename"])
            yield Ask(
                int(key) if key.isdecimal() else key, str(row["question"]), (folder / image,), group=image
            )

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Let the judge grade the answers; each capability, and each set of them, has its mean."""
        found = answered(self, self.asks(data), answers)
        rows = {name.removeprefix("v1_"): row for name, row in self._rows(data).items()}
        known = {ask.id: rows[str(ask.id)] for ask, _ in found.pairs if str(ask.id) in rows}
        expected = {key: str(row["answer"]) for key, row in known.items()}
        submission = {f"v1_{ask.id}": text for ask, text in found.pairs}
        items = grade_items(found.pairs, expected, rules_of(data), "mm_vet")
        judgement = judge(items, answers, data, scale=FRACTION, instead=submission)
        names = {key: sorted(words(row["capability"])) for key, row in known.items()}
        sets = {key: [", ".join(one)] for key, one in names.items()}
        return grades(found, expected, judgement, {"by capability": names, "by set of capabilities": sets})

    def _rows(self, data: TaskData) -> dict[str, Record]:
        fields: Fields = {"imagename": TEXT, "question": TEXT, "answer": TEXT, "capability": list}
        return read_by_id(data.path(self, "annotations"), fields)
