"""TextVQA: reading texts in images; the reference puts what an OCR system read into the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llava.eval.metrics.vqa import m4c_accuracy, m4c_answer
from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import AnnotatedTask
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, TaskData
from llava.eval.tasks.files import TEXT, Fields, check_rows, read_object
from llava.eval.tasks.grading import Key
from llava.eval.tasks.questions import image_folder, question_file
from llava.eval.tasks.short.people import texts

SITE = "https://textvqa.org/dataset/"
_OLD = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


class TextVQA(AnnotatedTask):
    """Validation. The id of a question is that of its image, so the question tells records apart."""

    name = "textvqa"
    title = "TextVQA"
    ids_repeat = True
    answers_in = "answers"
    notes = (
        "with OCR tokens in the prompt, as the published numbers; without them they are some 12 points lower",
    )
    data = (
        question_file("llava_textvqa_val_v051_ocr.jsonl", count=5000),
        image_folder("train_images", "the folder of TextVQA's train and val images", SITE, "CC BY 4.0"),
        DataFile(
            "annotation-file",
            "TextVQA_0.5.1_val.json",
            "the questions and answers",
            SITE,
            "CC BY 4.0",
            count=5000,
        ),
        DataFile(
            "ocr-file", "TextVQA_Rosetta_OCR_v0.2_val.json", "the OCR tokens", SITE, "CC BY 4.0", needed=False
        ),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions, each with the tokens of its image where the OCR file is there."""
        tokens: dict[str, Record] = {}
        if data.has(self, "ocr-file"):
            told = self._read(data, "ocr-file", {"image_id": TEXT, "ocr_tokens": list})
            tokens = {str(row["image_id"]): row for row in told}
        for row in self._read(data, "annotation-file", {"image_id": TEXT, "question": TEXT}):
            yield (
                str(row["image_id"]),
                row | {"ocr_tokens": tokens.get(str(row["image_id"]), {}).get("ocr_tokens", [])},
            )

    def _read(self, data: TaskData, key: str, fields: Fields) -> list[Record]:
        path = data.path(self, key)
        return check_rows(read_object(path, {"data": list})["data"], fields, path)

    def from_originals(self, data: TaskData) -> Iterator[Ask]:
        """Yield the questions; raises UserError without OCR tokens, which the prompts need."""
        data.path(self, "ocr-file")
        yield from super().from_originals(data)

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for a word or phrase; the tokens stand between."""
        tokens = row["ocr_tokens"]
        assert isinstance(tokens, list)
        text = prompts.lines(str(row["question"]), prompts.OCR + ", ".join(map(str, tokens)), prompts.SHORT)
        return Ask(identity, text, (self.image(data, f"{identity}.jpg"),), group=str(identity))

    def key(self) -> Key:
        """Know a question by its image and its words in lower case."""
        return lambda identity, prompt: (str(identity), question_of(prompt))

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Grade by M4C's rule, which is the reference's."""
        people = texts(row["answers"], f"textvqa, {ask.id}")
        said = m4c_answer(text)
        return Graded(ask.id, said, people[0], m4c_accuracy(text, people), bool(said), ask.group)


def question_of(prompt: str) -> str:
    """Return a prompt's question in lower case, with tokens before or behind it, or in the oldest form."""
    told = prompt.split("\n")
    if prompt.startswith("OCR tokens: ") and (found := _OLD.search(prompt)):
        return found[1].lower()
    return told[1 if prompt.startswith(prompts.OCR.strip()) and len(told) == 3 else 0].lower()
