"""ScienceQA with GPT-4: where the model and GPT-4 differ, a judge picks one of the two answers."""

from __future__ import annotations

from collections.abc import Sequence

from llava.eval.tasks.base import Ask, DataFile, Record, Report, TaskData
from llava.eval.tasks.choice.science_problems import said_letter
from llava.eval.tasks.choice.science_qa import ScienceQA
from llava.eval.tasks.files import read_object
from llava.eval.tasks.grading import answered
from llava.eval.tasks.judged.judgement import OPTIONS
from llava.eval.tasks.judged.picks import Two, ensemble
from llava.eval.tasks.prompts import LETTERS
from llava.utils import UserError

_URL = "https://github.com/haotian-liu/LLaVA/blob/main/docs/ScienceQA.md"


class ScienceQAWithGPT(ScienceQA):
    """The reference's ensemble; where GPT-4 names no letter, the reference draws lots, here ours counts."""

    name = "science_qa_gpt"
    title = "ScienceQA with GPT-4"
    options = OPTIONS
    answers_of = (ScienceQA.name,)
    data = (
        *ScienceQA.data,
        DataFile(
            "gpt4-result", "gpt4_result.json", "GPT-4's outputs by problem", _URL, "OpenAI's terms of use"
        ),
    )

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Count the upper bound (either is right), GPT-4 alone, and with a judge the ensemble."""
        found = answered(self, self.asks(data), answers)
        place = data.path(self, "gpt4-result")
        outputs = read_object(place, {"outputs": dict})["outputs"]
        assert isinstance(outputs, dict)
        problems = {
            number: (int(str(row["answer"])), len(self.choices(row))) for number, row in self.rows(data)
        }

        def two(ask: Ask, text: str) -> Two:
            (right, n), other = problems[str(ask.id)], str(outputs[ask.id])
            return Two(ask, text, other, _letter(text, n), _letter(other, n), LETTERS[right])

        pairs = [two(ask, text) for ask, text in found.pairs if ask.id in outputs]
        if not pairs:
            raise UserError(f"{place} has no output for any of the {len(found.pairs)} problems")
        return ensemble(found, pairs, answers, data)


def _letter(text: str, n_choices: int) -> str | None:
    """Return the letter that an answer names, None for one that is no choice ("The answer is None.")."""
    letter = said_letter(text)
    return letter if letter and letter in LETTERS[:n_choices] else None
