"""The evaluators of M4C under the reference's names: TextVQA, ST-VQA and TextCaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.metrics.anls import similarity
from llava.eval.metrics.vqa import m4c_accuracy, m4c_answer
from llava.eval.metrics.words import bleu
from llava.utils import UserError

Predictions = Sequence[Mapping[str, Any]]  # each with pred_answer and gt_answers
PEOPLE = 10


class EvalAIAnswerProcessor:
    """Normalises an answer as EvalAI's server of TextVQA does."""

    def __call__(self, item: str) -> str:
        """Return the answer in lower case, without punctuation and articles, with numbers as digits."""
        return m4c_answer(item)


class TextVQAAccuracyEvaluator:
    """The accuracy of TextVQA, over questions that ten people answered."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Predictions) -> float:
        """Return the mean accuracy, between 0 and 1. Raises UserError for other than ten answers."""
        for number, entry in enumerate(pred_list, start=1):
            if len(entry["gt_answers"]) != PEOPLE:
                raise UserError(
                    f"prediction {number} has {len(entry['gt_answers'])} answers of people; expected {PEOPLE}"
                )
        return _mean([m4c_accuracy(one["pred_answer"], one["gt_answers"]) for one in pred_list])


class STVQAAccuracyEvaluator:
    """The accuracy of ST-VQA: an answer is one of the accepted ones, or is not."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Predictions) -> float:
        """Return the share of answers that are accepted, all of them normalised."""
        plain = self.answer_processor
        return _mean([float(plain(one["pred_answer"]) in map(plain, one["gt_answers"])) for one in pred_list])


class STVQAANLSEvaluator:
    """ANLS as M4C counts it: spaces within an answer count as they are."""

    def get_anls(self, s1: str, s2: str) -> float:
        """Return the similarity of two answers but for case; 0 below a half."""
        near = similarity(s1.lower().strip(), s2.lower().strip())
        return near if near >= 0.5 else 0.0

    def eval_pred_list(self, pred_list: Predictions) -> float:
        """Return the mean over predictions of the best ANLS with an accepted answer."""
        return _mean(
            [
                max(self.get_anls(one["pred_answer"], truth) for truth in one["gt_answers"])
                for one in pred_list
            ]
        )


class TextCapsBleu4Evaluator:
    """BLEU of TextCaps, with an own tokenizer in place of the Java program that the reference runs."""

    def eval_pred_list(self, pred_list: Predictions) -> float:
        """Return BLEU-4 of all captions together, between 0 and 1."""
        if not pred_list:
            raise UserError("there is no prediction to score; expected at least one")
        return bleu([one["pred_answer"] for one in pred_list], [one["gt_answers"] for one in pred_list])


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise UserError("there is no prediction to score; expected at least one")
    return sum(values) / len(values)
