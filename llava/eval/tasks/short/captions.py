"""Captions of COCO and of NoCaps: the file that their servers take. CIDEr is not counted here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from llava.eval.submissions import write_json
from llava.eval.tasks import prompts
from llava.eval.tasks.base import Ask, DataFile, Record, Report, Task, TaskData
from llava.eval.tasks.files import ID, TEXT, check_rows, read_object
from llava.eval.tasks.grading import answered
from llava.eval.tasks.questions import checked, image_folder

NOTE = (
    "CIDEr is not counted: its published form needs a tokenizer in Java; give --submission's file to a server"
)


class COCOCaption(Task):
    """A caption of each image of val2014."""

    name = "coco_caption"
    title = "COCO captions"
    site: ClassVar[str] = "https://cocodataset.org/#download"
    data: ClassVar[tuple[DataFile, ...]] = (
        image_folder("val2014", "the folder of COCO val2014", site, "Flickr's terms"),
        DataFile(
            "annotation-file", "annotations/captions_val2014.json", "the file of images", site, "CC BY 4.0"
        ),
    )

    def asks(self, data: TaskData) -> Iterator[Ask]:
        """Yield each image of the annotation file."""
        path, folder = data.path(self, "annotation-file"), data.place(self, "image-folder")
        yield from checked(
            self,
            (
                Ask(row["id"], prompts.CAPTION, (folder / str(row["file_name"]),))  # type: ignore[arg-type]
                for row in check_rows(
                    read_object(path, {"images": list})["images"], {"id": ID, "file_name": TEXT}, path
                )
            ),
        )

    def report(self, answers: Sequence[Record], data: TaskData) -> Report:
        """Write [{image_id, caption}]."""
        found = answered(self, self.asks(data), answers)
        rows = [{"image_id": ask.id, "caption": text.strip()} for ask, text in found.pairs]
        return found.report([], written=write_json(data.submission, rows), notes=[NOTE])


class NoCaps(COCOCaption):
    """Images of Open Images with objects that COCO lacks; the server of the validation set still lives."""

    name = "nocaps"
    title = "NoCaps"
    site = "https://nocaps.org/download"
    data = (
        image_folder("images", "the folder of NoCaps' images", site, "CC BY 2.0"),
        DataFile(
            "annotation-file",
            "nocaps_val_4500_captions.json",
            "the file of images",
            site,
            "CC BY 2.0",
            count=4500,
        ),
    )
