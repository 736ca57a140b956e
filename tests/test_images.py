"""Images are read from files, URLs and base64, or refused in one sentence; padding keeps their pixels."""

import base64
import io
import random
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from text_data import cases, check_image, make_image

from llava.mm_utils import ImageError, expand2square, load_image, load_image_from_base64

FILE = "mm_utils.json"


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """The header of a PNG file of any size, and almost no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


RED = Image.new("RGB", (40, 30), (200, 10, 20))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8))
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"just some text, no image", "not in an image format"),
    "truncated_png": (encoded(NOISE)[:4000], "damaged"),
    "truncated_jpeg": (encoded(NOISE, "JPEG")[:900], "damaged"),
    "cut_header": (encoded(NOISE)[:20], "damaged|not in an image format"),
    "20000x20000": (huge_png(20000, 20000), "too large|at most"),
    "float": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    "postscript": (encoded(RED, "EPS"), "PostScript"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_in_one_sentence(name, tmp_path):
    content, message = BAD[name]
    file = tmp_path / "image.png"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(file)
    assert str(file) in str(caught.value)
    if name != "float":
        with pytest.raises(ImageError, match=message):
            load_image_from_base64(base64.b64encode(content))


def test_pixels_are_counted_before_decoding(tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(huge_png(13000, 13000))  # below Pillow's own limit, and without the data it announces
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match=r"13000 x 13000 = 169,000,000 pixels; at most 1,000,000"),
    ):
        load_image(file, max_pixels=1_000_000)


def test_missing_files_folders_and_other_schemes_are_refused(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="directory"):
        load_image(tmp_path)
    for address in ("ftp://host/a.png", "file:///etc/passwd"):
        with pytest.raises(ImageError, match="give a path, http:// or https://"):
            load_image(address)
    with pytest.raises(ImageError, match="base64"):
        load_image_from_base64("a")


def write(path: Path, image: Image.Image, file_format: str, **options) -> Path:
    image.save(path, format=file_format, **options)
    return path


def test_every_mode_becomes_rgb(tmp_path, recwarn):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    grey16 = write(tmp_path / "16bit.png", Image.fromarray(ramp * 257), "PNG")
    np.testing.assert_array_equal(np.asarray(load_image(grey16))[..., 1], ramp)
    cmyk = write(tmp_path / "cmyk.jpg", RED.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(load_image(cmyk)).astype(int) - (200, 10, 20)).max() <= 6
    palette = RED.convert("P", palette=Image.Palette.ADAPTIVE)
    clear = write(tmp_path / "clear.png", palette, "PNG", transparency=bytes([0, 255]))
    assert load_image(clear).getpixel((5, 5)) == (200, 10, 20)
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "green", "blue")]
    gif = write(tmp_path / "moving.gif", frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(gif).getpixel((4, 4)) == (255, 0, 0)
    for mode in ("1", "L", "LA", "RGBA"):
        assert load_image(write(tmp_path / f"{mode}.png", RED.convert(mode), "PNG")).mode == "RGB"
    for size in ((1, 1), (1, 4000)):
        assert load_image(write(tmp_path / "thin.png", Image.new("RGB", size), "PNG")).size == size
    assert not recwarn.list


def test_the_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert load_image(write(tmp_path / "turned.jpg", RED, "JPEG", exif=exif)).size == (40, 30)


left: set[str] = set()  # paths whose reader has gone


class Server(BaseHTTPRequestHandler):
    """Answers each path with one of the misbehaviours that a web server may have."""

    def do_GET(self) -> None:
        if self.path.startswith("/redirect"):
            target = {
                "/redirect": "/image",
                "/redirect-loop": "/redirect-loop",
                "/redirect-file": "file:///etc/passwd",
            }
            self.send_response(302)
            self.send_header("Location", target[self.path])
            self.end_headers()
            return
        sample_image = encoded(RED)
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path in ("/image", "/cut"):
            self.send_header("Content-Length", str(len(sample_image)))
        elif self.path == "/announced":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        if self.path == "/image":
            self.wfile.write(sample_image)
        elif self.path == "/cut":
            self.wfile.write(sample_image[:50])
        elif self.path == "/page":
            self.wfile.write(b"<html>no image</html>")
        elif self.path in ("/endless", "/drip"):
            for _ in range(3000):
                try:
                    self.wfile.write(b"x" * (100_000 if self.path == "/endless" else 1))
                except OSError:
                    left.add(self.path)
                    return
                time.sleep(0.02)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("path", ["/image", "/redirect"])
def test_images_are_loaded_from_urls(path, server):
    assert load_image(server + path).tobytes() == RED.tobytes()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "status 404"),
        ("/redirect-loop", "TooManyRedirects"),
        ("/redirect-file", "does not load"),
        ("/announced", "larger than 300,000 bytes"),
        ("/endless", "larger than 300,000 bytes"),
        ("/drip", "within 0.5 seconds"),
        ("/cut", "does not load|damaged"),
        ("/page", "not in an image format"),
    ],
)
def test_bad_urls_are_refused_in_time(path, message, server):
    with pytest.raises(ImageError, match=message):
        load_image(server + path, timeout_s=0.5 if path == "/drip" else 20, max_bytes=300_000)
    deadline = time.monotonic() + 20
    while path in ("/endless", "/drip") and path not in left:  # what has no end is left in the middle
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_unreachable_host_is_refused(server):
    with pytest.raises(ImageError, match="does not load: ConnectionError"):
        load_image("http://127.0.0.1:9/image.png", timeout_s=2)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_bytes_never_raise_anything_else():
    random.seed(1)
    sources = [
        encoded(NOISE),
        encoded(NOISE, "JPEG"),
        encoded(NOISE, "GIF"),
        encoded(NOISE, "TIFF"),
        encoded(NOISE, "BMP"),
    ]
    refused = 0
    for _ in range(300):
        data = bytearray(random.choice(sources))
        for _ in range(random.randint(1, 12)):
            data[random.randrange(min(len(data), 400))] = random.randrange(256)
        try:
            load_image_from_base64(base64.b64encode(bytes(data)), max_pixels=100_000)
        except ImageError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("case", cases(FILE, "base64"))
def test_base64_images_are_the_recorded_ones(case):
    buffer = io.BytesIO()
    make_image(case["input"]["image"]).save(buffer, format=case["input"]["format"])
    check_image(load_image_from_base64(base64.b64encode(buffer.getvalue())), case["expected"])


@pytest.mark.parametrize("case", cases(FILE, "expand2square"))
def test_padded_images_are_the_recorded_ones(case):
    color = case["input"]["background"]
    squared = expand2square(
        make_image(case["input"]["image"]), tuple(color) if isinstance(color, list) else color
    )
    if "raises" in case["expected"]:
        assert (squared.mode, squared.size) == ("RGB", (21, 21))  # the reference fails on grey images
    else:
        check_image(squared, case["expected"])


def test_padding_that_would_exhaust_the_memory_is_refused():
    with pytest.raises(ImageError, match="crop it first"):
        expand2square(Image.new("RGB", (1, 30000)), (0, 0, 0))
