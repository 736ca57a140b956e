"""Folders of images and videos: whether they can lie where their names say, and whether they may."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from llava.train.data.table import RecordTable
from llava.train.records import DataError, Record, has_video, media_names
from llava.utils import shortened

OUTSIDE_FLAG = "--allow_images_outside_folder"


def outside_folder(name: str, folder: str | None, kind: str = "image") -> str:
    """Say why the name of an image or video leads out of the folder, or return "" when it does not.

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
        f'give --{kind}_folder "" if all names are absolute, or {OUTSIDE_FLAG} True'
        if os.path.isabs(name)
        else f"give a folder that holds all {kind}s, or {OUTSIDE_FLAG} True"
    )
    return f"the {kind} {shortened(name)!r} {how} and lies outside of the {kind} folder {folder}; {remedy}"


def check_folder(folder: str | None, names: Sequence[str], where: str, kind: str = "image") -> None:
    """Raise DataError when there is no folder for the images or the video of a record, or it does not exist.

    kind: "image" or "video".
    """
    if not names:
        return
    has = f"has {'an' if kind == 'image' else 'a'} {kind}"
    flags = "--image_folder" if kind == "image" else "--video_folder or --image_folder"
    if folder is None:
        raise DataError(
            f"{where} {has}, {shortened(names[0])!r}; name its folder with {flags} "
            f'(--{kind}_folder "" if the names are absolute)'
        )
    if not folder:
        lacking = [name for name in names if not os.path.isabs(name) and not os.path.exists(name)]
        if lacking:
            raise DataError(
                f"{where} {has}, {shortened(lacking[0])!r}, which is relative and not there, and "
                f'--{kind}_folder is ""; name its folder with {flags}'
            )
    elif not os.path.isdir(folder) and not all(os.path.isabs(name) for name in names):
        what = "is no folder" if os.path.exists(folder) else "does not exist"
        raise DataError(
            f"the {kind} folder {folder} {what}, and {where} {has} in it, {shortened(names[0])!r}; "
            f"check {flags} (in a mixture, '{kind}_folder')"
        )


def folder_of(record: Record, own: Mapping[str, str | None], flags: Mapping[str, str | None]) -> str | None:
    """Return the folder that the media of a record are relative to.

    own: `image` and `video` folder of its source, before those of the flags. A video's is by default that of
    the images.
    """
    kinds = ("video", "image") if has_video(record) else ("image",)
    places = (where.get(kind) for where in (own, flags) for kind in kinds)
    return next((one for one in places if one is not None), None)


def check_folders(
    records: RecordTable, image_folder: str | None, video_folder: str | None = None, *, allow_outside: bool
) -> None:
    """Raise DataError when media of any source have no folder, or may not lie where their names say.

    image_folder, video_folder: of sources that name none. The first record with images and the first with a
    video of each source is looked at, and each name that is absolute or climbs.
    """
    flags = {"image": image_folder, "video": video_folder}
    for index in records.first_with_images():
        folder = media_folder(records, index, flags)
        check_folder(folder, known_names(records, index), records.name(index), kind_of_media(records[index]))
    for index, name in () if allow_outside else records.noted("leaving"):
        folder, kind = media_folder(records, index, flags), kind_of_media(records[index])
        reason = outside_folder(name, folder, kind)
        if reason and not records.fault(index):
            raise DataError(f"{records.name(index)}: {reason}")


def media_folder(
    records: RecordTable, index: int, flags: Mapping[str, str | None] | None = None
) -> str | None:
    """Return the folder of a record's media; see folder_of."""
    record = records[index]
    return folder_of(record if isinstance(record, dict) else {}, records.folders(index), flags or {})


def kind_of_media(record: object) -> str:
    """Return what messages call the media of a record: "image" or "video"."""
    return "video" if isinstance(record, dict) and has_video(record) else "image"


def known_names(records: RecordTable, index: int) -> list[str]:
    """Return the names of a record's media as far as they are names."""
    record = records[index]
    return [one for one in media_names(record) if isinstance(one, str)] if isinstance(record, dict) else []
