"""The images of a page: decoded under limits, kept for a while under ids that only their owners know."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
import time
from pathlib import Path

from PIL import Image

from llava.atomic import atomic_file
from llava.images import ImageError
from llava.serve.safe_fetch import FetchPolicy, decode_image
from llava.utils import shortened

PREVIEW_EDGE = 768
KEEP_S = 24 * 3600
KEEP_BYTES = 2 * 2**30
_JPEG_QUALITY = 85


class ImageStore:
    """A folder with the images of all dialogs, each named by a digest of its pixels.

    folder: only this process reads it. previews: what browsers may load. An image is dropped `keep_s` seconds
    after it was last used, or earlier when all together take more than `keep_bytes`. Safe for threads.
    """

    def __init__(
        self,
        folder: Path,
        previews: Path,
        *,
        policy: FetchPolicy | None = None,
        keep_s: float = KEEP_S,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self.folder, self.previews = folder, previews
        self.policy = policy or FetchPolicy()
        self.keep_s, self.keep_bytes = keep_s, keep_bytes
        self._lock = threading.Lock()
        for one in (folder, previews):
            one.mkdir(parents=True, exist_ok=True)

    def add_file(self, path: str | Path, name: str) -> str:
        """Keep the image of a file and return its id; name: what messages call it. Raises ImageError."""
        shown = f"{shortened(name, 80)!r}"
        try:
            size = Path(path).stat().st_size
            if size > self.policy.max_bytes:
                limit = self.policy.max_bytes // 2**20
                raise ImageError(f"the file {shown} has {size / 2**20:.0f} MiB; at most {limit} are read")
            data = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"the file {shown} is not there any more; upload it again") from error
        return self.add(decode_image(data, self.policy, name=shown))

    def add(self, image: Image.Image) -> str:
        """Keep an image and return its id."""
        image = image.convert("RGB")
        digest = hashlib.sha256(f"{image.width} {image.height} ".encode() + image.tobytes()).hexdigest()
        with self._lock:
            if not self.file(digest).exists():
                with atomic_file(self.file(digest)) as scratch:
                    image.save(scratch, format="PNG", compress_level=1)
                small = image.copy()
                small.thumbnail((PREVIEW_EDGE, PREVIEW_EDGE))
                with atomic_file(self.preview(digest)) as scratch:
                    small.save(scratch, format="JPEG", quality=_JPEG_QUALITY)
            self._use(digest)
            self._sweep()
        return digest

    def has(self, digest: str) -> bool:
        """Tell whether an image is still kept."""
        return self.file(digest).exists() and self.preview(digest).exists()

    def open(self, digest: str) -> Image.Image:
        """Return an image of RGB. Raises ImageError for one that was dropped."""
        try:
            with self._lock:
                data = self.file(digest).read_bytes()
                self._use(digest)
        except OSError as error:
            raise ImageError(
                "an image of this conversation is not kept any more; send it again in a new one"
            ) from error
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    def data_url(self, digest: str) -> str:
        """Return an image as a data: URL. Raises ImageError."""
        buffer = io.BytesIO()
        self.open(digest).save(buffer, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

    def preview(self, digest: str) -> Path:
        """Return the file of an image as browsers load it."""
        return self.previews / f"{digest}.jpg"

    def file(self, digest: str) -> Path:
        """Return the file with all pixels of an image."""
        return self.folder / f"{digest}.png"

    def _use(self, digest: str) -> None:
        """Note the time of use on the file itself."""
        os.utime(self.file(digest))

    def _sweep(self) -> None:
        """Drop what was not used for long, and the oldest of what is too much."""
        found = sorted(
            ((one.stat().st_mtime, one.stat().st_size, one.stem) for one in self.folder.glob("*.png")),
            reverse=True,
        )
        total, oldest = 0, time.time() - self.keep_s
        for index, (used, size, digest) in enumerate(found):
            total += size
            if index and (used < oldest or total > self.keep_bytes):
                self.file(digest).unlink(missing_ok=True)
                self.preview(digest).unlink(missing_ok=True)
