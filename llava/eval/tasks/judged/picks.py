"""Two answers with a letter each: what they give together, a judge picking where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llava.eval.judges.judging import Item
from llava.eval.judges.replies import Scale, UnreadableReply, Value
from llava.eval.judges.wording import messages
from llava.eval.tasks.base import Ask, Graded, Kind, Record, Report, Score, TaskData
from llava.eval.tasks.grading import Answered, mean
from llava.eval.tasks.judged.judgement import judge
from llava.utils import shortened

PICK = (
    "Two assistants answered the question and differ. Weigh their reasons, decide which of the two is "
    "right, and "
    "reply with the number alone: 1 for the first, 2 for the second."
)


@dataclass(frozen=True)
class Two:
    """A question that both answered. mine and other: the letters that they name, None for none."""

    ask: Ask
    text: str
    other_text: str
    mine: str | None
    other: str | None
    right: str

    @property
    def differ(self) -> bool:
        """Whether both name a letter, and not the same."""
        return self.mine is not None and self.other is not None and self.mine != self.other


def read_pick(reply: str) -> Value:
    """Return 1 or 2, which a reply has to consist of."""
    said = reply.strip().split("\n")[0].strip().rstrip(".")
    if said not in ("1", "2"):
        raise UnreadableReply(f"the first line is {shortened(said, 80)!r}; expected 1 or 2")
    return float(said)


def _item(two: Two) -> Item:
    parts = [f"[Question]\n{two.ask.text}", f"[Answer 1]\n{two.text}", f"[Answer 2]\n{two.other_text}", PICK]
    return Item(two.ask.id, messages("\n\n".join(parts)), {"question_id": two.ask.id})


def ensemble(found: Answered, pairs: Sequence[Two], answers: Sequence[Record], data: TaskData) -> Report:
    """Return upper bound and the other's accuracy, behind that of both together where a judge has picked.

    Where one names no letter the other's counts. Pairs without a judgement count nowhere in the ensemble.
    """

    def score(name: str, letter: Callable[[Two], str | None], kind: Kind = "reference") -> Score:
        return mean(name, [_graded(two, letter(two)) for two in pairs], kind)

    scores = [
        score("upper bound: either is right", lambda two: two.mine if two.mine == two.right else two.other),
        score("GPT-4 alone", lambda two: two.other),
    ]
    items = [_item(two) for two in pairs if two.differ]
    if not items:
        alike = [_graded(two, two.mine or two.other) for two in pairs]
        return found.report([mean("ensemble", alike, "reference"), *scores], alike)
    judgement = judge(items, answers, data, scale=Scale("pick", read_pick))
    if judgement.outcome is None:
        return judgement.counted(found.report(scores))
    graded = []
    for two in pairs:
        if not two.differ:
            graded.append(_graded(two, two.mine or two.other))
        elif (pick := judgement.value(two.ask.id)) is not None:
            graded.append(_graded(two, two.mine if pick == 1 else two.other))
    return judgement.counted(found.report([mean("ensemble", graded, "judged"), *scores], graded))


def _graded(two: Two, letter: str | None) -> Graded:
    credit = float(letter == two.right)
    return Graded(two.ask.id, letter or "", two.right, credit, letter is not None, two.ask.group)
