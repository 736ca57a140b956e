"""Images as PIL objects: reading them safely from files, URLs and base64; padding to a square. No torch."""

from __future__ import annotations

import base64
import binascii
import io
import time
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from llava.utils import UserError, import_optional, shortened

# Pillow itself refuses more pixels than this; decoded to RGB they take 537 MB. 20000 x 20000 is above it.
MAX_PIXELS = 178_956_970
IMAGE_ENDINGS = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")  # of files
MAX_DOWNLOAD_BYTES = 64 * 1024 * 1024
DOWNLOAD_TIMEOUT_S = 20.0
MAX_REDIRECTS = 5

Color = int | tuple[int, ...]


class ImageError(UserError):
    """An image that is missing, broken, too large or of a kind that cannot be used."""


def load_image(
    image_file: str | Path,
    *,
    timeout_s: float = DOWNLOAD_TIMEOUT_S,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Read an image from a path or an http(s) URL and return it as RGB.

    The first frame of an animation is taken, transparency is dropped, 16-bit grey is scaled to 8 bits, and
    the EXIF orientation is not applied (models were trained without it). `timeout_s` and `max_bytes` bound a
    download, `max_pixels` is checked before decoding. Raises ImageError.
    """
    source = str(image_file)
    scheme = urlsplit(source).scheme.lower() if "://" in source else ""
    if scheme in ("http", "https"):
        data = _download(source, timeout_s, max_bytes)
        return _to_rgb(_decode(io.BytesIO(data), source, max_pixels), source)
    if scheme:
        raise ImageError(
            f"the image address {source!r} begins with {scheme}://; give a path, http:// or https://"
        )
    try:
        with open(source, "rb") as file:
            return _to_rgb(_decode(file, source, max_pixels), source)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"the image {shortened(source)!r} cannot be read: {reason}") from error


def load_image_from_bytes(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Decode an image file that lies in memory, as load_image does; `name` is for messages.

    formats: Pillow's names of those that are tried (None: all). Raises ImageError.
    """
    return _to_rgb(_decode(io.BytesIO(data), name, max_pixels, formats), name)


def as_image(source: object, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an RGB image of a Pillow image, or of a path or URL as load_image does.

    An RGB image comes back as the same object, decoded. Raises ImageError for what cannot be decoded, for too
    many pixels, and for another type.
    """
    if isinstance(source, (str, Path)):
        return load_image(source, max_pixels=max_pixels)
    if not isinstance(source, Image.Image):
        raise ImageError(f"an image is a {type(source).__name__}; expected a Pillow image, a path or a URL")
    name = str(getattr(source, "filename", "") or "given")
    width, height = source.size
    if width * height > max_pixels or not width * height:
        raise ImageError(f"the image {name!r} has {width} x {height} pixels; expected 1 to {max_pixels:,}")
    try:
        source.load()
    except Exception as error:  # an opened file is decoded only now, see _decode
        raise ImageError(f"the image {name!r} is damaged: {type(error).__name__}: {error}") from error
    return source if source.mode == "RGB" else _to_rgb(source, name)


def image_size(source: Image.Image | str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
    """Return (width, height) of an image without decoding it; None for a URL, which is not fetched.

    Raises ImageError for a file that is missing, no image or too large, as load_image does.
    """
    if isinstance(source, Image.Image):
        return source.size
    name = str(source)
    if "://" in name:
        return None
    try:
        with open(name, "rb") as file:
            return _decode(file, name, max_pixels, load=False).size
    except OSError as error:
        raise ImageError(f"the image {name!r} cannot be read: {error.strerror or error}") from error


def load_image_from_data_url(url: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the image of a `data:` URL with base64 content to RGB. Raises ImageError."""
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError(
            "the data: URL of an image has no base64 content; expected data:image/png;base64,..."
        )
    return _to_rgb(load_image_from_base64(data, max_pixels=max_pixels), "in the data: URL")


def load_image_from_base64(image: str | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a base64 text to an image, in the mode it was stored in. Raises ImageError."""
    try:
        data = base64.b64decode(image)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the image is not valid base64 text: {error}") from error
    return _decode(io.BytesIO(data), "the base64 image", max_pixels)


def expand2square(pil_img: Image.Image, background_color: Color) -> Image.Image:
    """Pad an image to a square, centred; a square image is returned as it is (the same object)."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    if isinstance(background_color, tuple) and pil_img.mode not in ("RGB", "RGBA", "P"):
        pil_img = pil_img.convert("RGB")  # grey and the like cannot take a background of three numbers
    edge = max(width, height)
    if edge * edge > 4 * MAX_PIXELS:
        raise ImageError(
            f"an image of {width} x {height} would take {edge} x {edge} as a square; crop it first"
        )
    square = Image.new(pil_img.mode, (edge, edge), background_color)
    square.paste(pil_img, ((edge - width) // 2, (edge - height) // 2))
    return square


def _decode(
    file: IO[bytes],
    name: str,
    max_pixels: int,
    formats: tuple[str, ...] | None = None,
    *,
    load: bool = True,
) -> Image.Image:
    """Read the first frame of an opened image file, after a look at its size; or only look (load=False)."""
    if not file.read(1):
        raise ImageError(f"the image {name!r} is empty (0 bytes)")
    file.seek(0)
    try:
        image = Image.open(file, formats=formats)
        if image.format == "EPS":  # decoding one would run the program Ghostscript
            raise ImageError(f"the image {name!r} is PostScript (EPS); convert it to PNG or JPEG")
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                f"the image {name!r} has {width} x {height} = {width * height:,} pixels; "
                f"at most {max_pixels:,} are read, make it smaller"
            )
        if load:
            image.load()
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image {name!r} is too large to be decoded: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"the image {name!r} is not in an image format that can be read") from error
    except (
        Exception
    ) as error:  # decoders raise almost anything on a broken file: OSError, SyntaxError, KeyError
        raise ImageError(f"the image {name!r} is damaged: {type(error).__name__}: {error}") from error
    return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert a decoded image of any mode to RGB."""
    if image.mode == "F":
        raise ImageError(f"the image {name!r} has floating-point pixels; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255, which leaves an almost white image
        image = image.convert("I").point(lambda level: level * (1 / 256)).convert("L")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same colours, without Pillow's warning about transparent palettes
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"the image {name!r} has the colour mode {image.mode}; save it as RGB") from error


def _download(url: str, timeout_s: float, max_bytes: int) -> bytes:
    """Fetch a URL within a total time and size; at most MAX_REDIRECTS redirects, to http and https only."""
    requests = import_optional("requests", needed_for="loading an image from a URL", install="requests")
    deadline = time.monotonic() + timeout_s
    too_large = f"the image at {url} is larger than {max_bytes:,} bytes; download it and pass a smaller file"
    try:
        with requests.Session() as session:
            session.max_redirects = MAX_REDIRECTS
            headers = {"User-Agent": "llava", "Accept-Encoding": "identity"}
            with session.get(url, stream=True, timeout=timeout_s, headers=headers) as response:
                if response.status_code != 200:
                    raise ImageError(f"the image at {url} cannot be had: HTTP status {response.status_code}")
                if int(response.headers.get("Content-Length") or 0) > max_bytes:
                    raise ImageError(too_large)
                # read1 returns what has arrived, so that a server that drips bytes meets the deadline as well
                read = getattr(response.raw, "read1", response.raw.read)
                data = bytearray()
                while chunk := read(65536):
                    data += chunk
                    if len(data) > max_bytes:
                        raise ImageError(too_large)
                    if time.monotonic() > deadline:
                        raise ImageError(f"the image at {url} did not arrive within {timeout_s:g} seconds")
                return bytes(data)
    except ImageError:
        raise
    except Exception as error:  # requests, urllib3, ssl and socket each raise their own kinds
        raise ImageError(f"the image at {url} does not load: {type(error).__name__}: {error}") from error
