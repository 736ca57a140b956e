"""Image folders: whether images of the data can lie where their names say, and whether they may."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llava.train.data.table import RecordTable
from llava.train.records import DataError
from llava.utils import shortened

OUTSIDE_FLAG = "--allow_images_outside_folder"


def outside_folder(name: str, folder: str | None) -> str:
    """Say why an image name leads out of the folder, or return "" when it does not.

    A name is followed as text, not through links: folders of links to images are common. Without a folder
    (--image_folder "") there is nothing to leave.
    """
    if not folder:
        return ""
    inside = os.path.abspath(folder)
    place = os.path.abspath(os.path.join(inside, name))
    if os.path.commonpath([inside, place]) == inside:
        return ""
    how = "is absolute" if os.path.isabs(name) else "climbs"
    remedy = (
        f'give --image_folder "" if all names are absolute, or {OUTSIDE_FLAG} True'
        if os.path.isabs(name)
        else f"give a folder that holds all images, or {OUTSIDE_FLAG} True"
    )
    return f"the image {shortened(name)!r} {how} and lies outside of the image folder {folder}; {remedy}"


def check_folder(folder: str | None, names: Sequence[str], where: str) -> None:
    """Raise DataError when there is no folder for the images of a record, or it does not exist."""
    if not names:
        return
    if folder is None:
        raise DataError(
            f"{where} has an image, {shortened(names[0])!r}; name its folder with --image_folder "
            '(--image_folder "" if the names are absolute)'
        )
    if folder and not os.path.isdir(folder) and not all(os.path.isabs(name) for name in names):
        what = "is no folder" if os.path.exists(folder) else "does not exist"
        raise DataError(
            f"the image folder {folder} {what}, and {where} has an image in it, {shortened(names[0])!r}; "
            "check --image_folder (in a mixture, 'image_folder')"
        )


def check_folders(records: RecordTable, image_folder: str | None, *, allow_outside: bool) -> None:
    """Raise DataError when images of any source have no folder, or may not lie where their names say.

    image_folder: of sources that name none. The first record with images of each source is looked at, and
    each name that is absolute or climbs.
    """
    for index in records.first_with_images():
        own = records.image_folder(index)
        folder = image_folder if own is None else own
        check_folder(folder, image_names(records, index), records.name(index))
    for index, name in () if allow_outside else records.noted("leaving"):
        own = records.image_folder(index)
        reason = outside_folder(name, image_folder if own is None else own)
        if reason and not records.fault(index):
            raise DataError(f"{records.name(index)}: {reason}")


def image_names(records: RecordTable, index: int) -> list[str]:
    """Return the image names of a record as far as they are names."""
    record = records[index]
    image = record.get("image") if isinstance(record, dict) else None
    return [one for one in (image if isinstance(image, list) else [image]) if isinstance(one, str)]
