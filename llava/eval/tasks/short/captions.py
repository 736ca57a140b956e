"""Captions of COCO and of NoCaps: CIDEr-D, and the file that their servers take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from llava.eval.submissions import write_json
from llava.eval.tasks import prompts
from llava.eval.tasks.base import Ask, DataFile, Record, Report, Task, TaskData
from llava.eval.tasks.files import ID, TEXT, read_listed
from llava.eval.tasks.grading import answered
from llava.eval.tasks.questions import checked, image_folder
from llava.eval.tasks.short.caption_scores import cider, graded_captions, read_captions

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
        rows = read_listed(path, "images", {"id": ID, "file_name": TEXT})
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
        people = read_captions(data.path(self, "annotation-file"))
        if not people:
            return found.report([], written=written, notes=[NO_CAPTIONS])
        graded = graded_captions(found, people)
        return found.report([cider(graded)], graded, written=written, notes=[NOTE])


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
