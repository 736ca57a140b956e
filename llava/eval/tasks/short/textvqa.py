"""TextVQA: reading texts in images; the reference puts what an OCR system read into the prompt."""

from __future__ import annotations

from collections.abc import Iterator

from llava.eval.metrics.vqa import m4c_accuracy, m4c_answer
from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import AnnotatedTask
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, TaskData
from llava.eval.tasks.files import TEXT, Fields, read_listed
from llava.eval.tasks.grading import Key
from llava.eval.tasks.questions import image_folder, question_file
from llava.eval.tasks.short.people import texts
from llava.eval.tasks.short.textvqa_prompts import question_of

SITE = "https://textvqa.org/dataset/"


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
            fields: Fields = {"image_id": TEXT, "ocr_tokens": list}
            told = read_listed(data.path(self, "ocr-file"), "data", fields)
            tokens = {str(row["image_id"]): row for row in told}
        fields = {"image_id": TEXT, "question": TEXT}
        for row in read_listed(data.path(self, "annotation-file"), "data", fields):
            name = str(row["image_id"])
            yield name, row | {"ocr_tokens": tokens.get(name, {}).get("ocr_tokens", [])}

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
