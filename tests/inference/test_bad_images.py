"""Images of every broken and every odd kind, through load_image and every way of asking a loaded model."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.eval.run_llava import eval_model, load_images
from llava.inference.assistant import Assistant
from llava.mm_utils import load_image, process_images
from llava.serve import cli
from llava.utils import UserError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8))
SHORT = {"max_new_tokens": 2, "temperature": 0}


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def huge_png(edge: int) -> bytes:
    """The header of a PNG file that announces edge x edge pixels, and almost no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = edge.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# content of the file, None for no file -> part of the sentence
BROKEN: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "cannot be read"),
    "zero bytes": (b"", "is empty"),
    "a text": (b"just some text, no image\n", "not in an image format"),
    "a page": (b"<html><body>404</body></html>", "not in an image format"),
    "truncated png": (encoded(NOISE)[:4000], "damaged"),
    "truncated jpeg": (encoded(NOISE, "JPEG")[:900], "damaged"),
    "20000 x 20000": (huge_png(20000), "too large|at most"),
    "floats": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    "postscript": (encoded(NOISE, "EPS"), "PostScript"),
}
FRAMES = [Image.new("RGB", (9, 9), color) for color in ("red", "green", "blue")]
ODD = {
    "1 x 1": encoded(Image.new("RGB", (1, 1), "red")),
    "1 x 4000": encoded(Image.new("RGB", (1, 4000), "red")),
    "4000 x 1": encoded(Image.new("RGB", (4000, 1), "red")),
    "cmyk": encoded(NOISE.convert("CMYK"), "JPEG"),
    "16 bit": encoded(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)),
    "palette with transparency": encoded(
        NOISE.convert("P", palette=Image.Palette.ADAPTIVE), transparency=bytes([0, 255])
    ),
    "grey with alpha": encoded(NOISE.convert("LA")),
    "one bit": encoded(NOISE.convert("1")),
    "animation": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
}


@pytest.fixture(params=["llama", "mistral"])  # padded to a square, anyres tiles
def assistant(request, load_family) -> Assistant:
    loaded, template = load_family(request.param)
    return Assistant(loaded, conv_templates[template])


def ways_of_asking(assistant: Assistant, file: str) -> dict:
    """Every front function, asked about the image in `file`."""
    loaded = (assistant.tokenizer, assistant.model, assistant.image_processor, assistant.context_len)
    args = SimpleNamespace(
        model_path="llava", query="What?", image_file=file, temperature=0, max_new_tokens=2
    )
    return {
        "load_image": lambda: load_image(file),
        "chat": lambda: assistant.chat("What?", images=[file], **SHORT),
        "chat with a path": lambda: assistant.chat("What?", images=Path(file), **SHORT),
        "stream": lambda: "".join(assistant.stream("What?", images=file, **SHORT)),
        "session": lambda: assistant.session().ask("What?", [file]),
        "batch": lambda: assistant.batch(["Hello", ("What?", [file])], **SHORT),
        "eval_model": lambda: eval_model(args, loaded),
        "load_images": lambda: load_images([file]),
        "the CLI's load_image": lambda: cli.load_image(file),
    }


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_one_sentence_everywhere(kind, assistant, tmp_path):
    content, message = BROKEN[kind]
    file = tmp_path / "image.png"
    if content is not None:
        file.write_bytes(content)
    before = assistant.chat("What?", images=[NOISE], **SHORT)
    for name, ask in ways_of_asking(assistant, str(file)).items():
        with pytest.raises(UserError, match=message) as caught:
            ask()
        told = str(caught.value)
        assert "\n" not in told and len(told) < 400, name
        assert str(file) in told, name
    assert assistant.chat("What?", images=[NOISE], **SHORT) == before  # it stays usable


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_image_is_answered(kind, assistant, tmp_path, recwarn):
    file = tmp_path / "image"
    file.write_bytes(ODD[kind])
    assert load_image(file).mode == "RGB"
    by_path = assistant.chat("What?", images=[str(file)], **SHORT)
    with Image.open(file) as opened:
        assert assistant.chat("What?", images=[opened], **SHORT) == by_path
    assert assistant.batch([("What?", [file])], **SHORT) == [by_path]
    pixels = process_images([load_image(file)], assistant.image_processor, assistant.model.config)
    assert all(np.isfinite(one.numpy()).all() for one in pixels)
    assert not [
        one for one in recwarn.list if issubclass(one.category, UserWarning) and "PIL" in str(one.filename)
    ]


def test_an_opened_but_broken_image_is_one_sentence(assistant, tmp_path):
    """Pillow decodes an opened file only when its pixels are asked for."""
    file = tmp_path / "image.png"
    file.write_bytes(encoded(NOISE)[:4000])
    for ask in (
        lambda image: assistant.chat("What?", images=[image], **SHORT),
        lambda image: assistant.batch([("What?", [image])], **SHORT),
        lambda image: assistant.session().ask("What?", [image]),
    ):
        with Image.open(file) as opened, pytest.raises(UserError, match="damaged"):
            ask(opened)


@pytest.mark.parametrize(
    "given", [np.zeros((4, 4, 3), np.uint8), b"bytes", None, 7], ids=lambda one: type(one).__name__
)
def test_what_is_no_image_is_one_sentence(given, assistant):
    for ask in (
        lambda: assistant.chat("What?", images=[given], **SHORT),
        lambda: assistant.batch([("What?", [given])], **SHORT),
        lambda: assistant.session().ask("What?", [given]),
    ):
        with pytest.raises(UserError, match=f"{type(given).__name__}; expected"):
            ask()


@pytest.mark.parametrize(
    ("question", "count"), [("<image> <image> Compare.", 1), ("<image> What?", 2), ("<image>", 0)]
)
def test_image_tokens_and_images_that_differ_in_number(question, count, assistant):
    for ask in (
        lambda: assistant.chat(question, images=[NOISE] * count, **SHORT),
        lambda: assistant.batch([(question, [NOISE] * count)], **SHORT),
        lambda: assistant.session().ask(question, [NOISE] * count),
    ):
        with pytest.raises(UserError, match=r"image\(s\)") as caught:
            ask()
        assert "\n" not in str(caught.value)
