"""HallusionBench: illusions and altered figures; questions, whole figures and whole questions are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llava.eval.tasks import prompts
from llava.eval.tasks.annotated import AnnotatedTask, Rows
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Score, TaskData
from llava.eval.tasks.choice.rolls import whole_groups
from llava.eval.tasks.files import ID, TEXT, read_list
from llava.eval.tasks.grading import Answered, mean
from llava.eval.tasks.questions import image_folder
from llava.eval.tasks.rules import yes_or_no

SITE = "https://github.com/tianyi-lab/HallusionBench"
PARTS = ("category", "subcategory", "set_id", "figure_id", "question_id")
FIELDS = {"question": TEXT} | dict.fromkeys((*PARTS, "gt_answer"), ID)


class HallusionBench(AnnotatedTask):
    """The authors let a language model read answers; here yes or no is read."""

    name = "hallusionbench"
    title = "HallusionBench"
    answers_in = "gt_answer"
    one_file = True
    notes = ("yes or no is read in answers; the authors' numbers come from a language model that reads them",)
    data = (
        image_folder(".", "the folder that holds hallusion_bench", SITE, "BSD 3-Clause"),
        DataFile("annotation-file", "HallusionBench.json", "the questions and answers", SITE, "BSD 3-Clause"),
    )

    def rows(self, data: TaskData) -> Iterator[tuple[str, Record]]:
        """Yield the questions; the five fields that number them make the id."""
        for row in read_list(data.path(self, "annotation-file"), FIELDS):
            yield "/".join(str(row[name]) for name in PARTS), row

    def ask(self, identity: str | int, row: Record, data: TaskData) -> Ask:
        """Ask for yes or no; some questions have no image."""
        name = str(row.get("filename") or "").removeprefix("./")
        text = prompts.lines(str(row["question"]), prompts.YES_NO)
        group = "/".join(str(row[part]) for part in PARTS[:3])
        return Ask(identity, text, (self.image(data, name),) if name else (), group=group)

    def grade(self, ask: Ask, row: Record, text: str) -> Graded:
        """Read yes or no."""
        said, wanted = yes_or_no(text), "yes" if str(row["gt_answer"]) == "1" else "no"
        return Graded(ask.id, said or "", wanted, float(said == wanted), said is not None, ask.group)

    def kinds(self, row: Record) -> dict[str, str]:
        """Tell questions that need the image from others."""
        return {"category": str(row["category"]), "subcategory": str(row["subcategory"])}

    def scores(self, graded: Sequence[Graded], found: Answered, rows: Rows) -> list[Score]:
        """Return the accuracy of questions, of figures (all right), and of questions over all figures."""
        return [
            mean("accuracy of questions (aAcc)", graded),
            self._grouped("accuracy of figures (fAcc)", graded, found, rows, "figure_id"),
            self._grouped("accuracy over figures (qAcc)", graded, found, rows, "question_id"),
        ]

    def _grouped(self, name: str, graded: Sequence[Graded], found: Answered, rows: Rows, last: str) -> Score:
        groups: list[str] = []
        for ask in found.asks:
            row = self.row_of(ask, rows)
            bare = (
                last == "figure_id" and row["category"] == "VS" and str(row["figure_id"]) == "0"
            )  # no figure
            groups.append("" if bare else "/".join(str(row[part]) for part in (*PARTS[:3], last)))
        of = dict(zip((str(ask.id) for ask in found.asks), groups, strict=True))
        sizes = {one: groups.count(one) for one in set(groups)}
        own = [
            Graded(one.id, "", "", one.credit, one.parsed, of[str(one.id)])
            for one in graded
            if of[str(one.id)]
        ]
        return mean(name, whole_groups(own, sizes))
