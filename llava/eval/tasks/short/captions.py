"""Captions of COCO and of NoCaps: CIDEr-D, and the file that their servers take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from llava.eval.metrics.cider import SCALE, cider_d
from llava.eval.submissions import write_json
from llava.eval.tasks import prompts
from llava.eval.tasks.base import Ask, DataFile, Graded, Record, Report, Score, Task, TaskData
from llava.eval.tasks.files import ID, TEXT, check_rows, read_object
from llava.eval.tasks.grading import Answered, answered, mean
from llava.eval.tasks.questions import checked, image_folder

NOTE = (
    "CIDEr-D with words split here: the published one runs a tokenizer in Java, see --submission for a server"
)
NO_CAPTIONS = "the annotation file holds no captions: CIDEr-D is not counted, see --submission for a server"


class COCOCaption(Task):
    """A caption of each image of val2014."""

    name = "coco_caption"
    title = "COCO captions"
    site: ClassVar[str] = "https://cocodataset.org/#download"
    data: ClassVar[tuple[DataFile, ...]] = (
        image_folder("val2014", "the folder of COCO val2014", site, "Flickr's terms"),
        DataFile(
            "annotation-file", "annotations/captions_val2014.json", "images and captions", site, "CC BY 4.0"
        ),
    )

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield each image of the annotation file."""
        path, folder = data.path(self, "annotation-file"), data.place(self, "image-folder")
        rows = check_rows(read_object(path, {"images": list})["images"], {"id": ID, "file_name": TEXT}, path)
        yield from checked(
            self,
            (
                Ask(row["id"], prompts.CAPTION, (folder / str(row["file_name"]),))  # type: ignore[arg-type]
                for row in rows
            ),
        )

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Count CIDEr-D where captions of people are there, and write [{image_id, caption}]."""
        found = answered(self, self.asks(data), answers)
        rows = [{"image_id": ask.id, "caption": text.strip()} for ask, text in found.pairs]
        written = write_json(data.submission, rows)
        people = self.captions(data)
        if not people:
            return found.report([], written=written, notes=[NO_CAPTIONS])
        graded = _graded(found, people)
        return found.report([cider(graded)], graded, written=written, notes=[NOTE])

    def captions(self, data: TaskData) -> dict[str, list[str]]:
        """Return what people said of each image; {} where the file has no captions. Raises UserError."""
        path = data.path(self, "annotation-file")
        whole, people = read_object(path, {}), dict[str, list[str]]()
        for row in check_rows(whole.get("annotations", []), {"image_id": ID, "caption": TEXT}, path):
            people.setdefault(str(row["image_id"]), []).append(str(row["caption"]))
        return people


class NoCaps(COCOCaption):
    """Images of Open Images with objects that COCO lacks; the server of the validation set still lives."""

    name = "nocaps"
    title = "NoCaps"
    site = "https://nocaps.org/download"
    data = (
        image_folder("images", "the folder of NoCaps' images", site, "CC BY 2.0"),
        DataFile(
            "annotation-file", "nocaps_val_4500_captions.json", "the images", site, "CC BY 2.0", count=4500
        ),
    )


def _graded(found: Answered, people: dict[str, list[str]]) -> list[Graded]:
    """Return what the captions of images earn, of which people's are known: CIDEr-D of 10."""
    pairs = [(ask, text, people[str(ask.id)]) for ask, text in found.pairs if str(ask.id) in people]
    scores = cider_d([text for _, text, _ in pairs], [some for _, _, some in pairs])
    return [
        Graded(ask.id, text.strip(), some[0], score / SCALE)
        for (ask, text, some), score in zip(pairs, scores, strict=True)
    ]


def cider(graded: Sequence[Graded]) -> Score:
    """Return the CIDEr-D of a set as it is published: times 100, at most 1000."""
    one = mean("CIDEr-D", graded, "approximate", unit="points")
    stderr = None if one.stderr is None else SCALE * one.stderr
    return replace(one, value=SCALE * one.value, low=None, high=None, stderr=stderr)
