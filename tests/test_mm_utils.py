"""Pictures and prompts become the recorded values; bad pictures are refused in one sentence."""

import base64
import io
import math
import random
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from text_data import cases, check_picture, check_pixels, clip_processor, make_image, tokenizer_folder

from llava import mm_utils
from llava.mm_utils import (
    ImageError,
    KeywordsStoppingCriteria,
    load_image,
    load_image_from_base64,
    process_images,
    tokenizer_image_token,
)
from llava.model.tokenizer import load_tokenizer
from llava.utils import UserError

FILE = "mm_utils.json"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    found = {}
    for kind in (
        "tiny_tokenizer",
        "tiny_tokenizer_legacy",
        "tiny_tokenizer_imtokens",
        "tiny_tokenizer_chatml",
    ):
        found[kind] = load_tokenizer(tokenizer_folder(root / kind, kind))
        found[kind].pad_token = found[kind].unk_token
    return found


# ------------------------------------------------------------------------------------------------ recorded
# values


@pytest.mark.parametrize("case", cases(FILE, "tokenizer_image_token"))
def test_prompts_with_images_have_the_recorded_ids(case, tokenizers):
    given, expected = case["input"], case["expected"]
    options = {"image_token_index": given["index"]} if "index" in given else {}
    if "return_tensors" in given:
        options["return_tensors"] = given["return_tensors"]
    if "raises" in expected:
        with pytest.raises(UserError, match="return_tensors is"):
            tokenizer_image_token(given["prompt"], tokenizers[given["tokenizer"]], **options)
        return
    ids = tokenizer_image_token(given["prompt"], tokenizers[given["tokenizer"]], **options)
    if "tensor" in expected:
        assert (ids.tolist(), str(ids.dtype)) == (expected["tensor"], expected["dtype"])
    else:
        assert ids == expected["list"] and type(ids) is list


@pytest.mark.parametrize("case", cases(FILE, "best_resolution"))
def test_the_recorded_resolutions_are_chosen(case):
    pinpoints = [tuple(pair) for pair in case["input"]["pinpoints"]]
    for size, expected in zip(case["input"]["sizes"], case["expected"], strict=True):
        best = mm_utils.select_best_resolution(tuple(size), pinpoints)
        assert (None if best is None else list(best)) == expected


@pytest.mark.parametrize("case", cases(FILE, "grid_shape"))
def test_grid_shapes_are_the_recorded_ones(case):
    given = case["input"]
    for size, expected in zip(given["sizes"], case["expected"], strict=True):
        if not isinstance(expected, dict):
            shape = mm_utils.get_anyres_image_grid_shape(tuple(size), given["pinpoints"], given["patch"])
            assert list(shape) == expected


@pytest.mark.parametrize("case", cases(FILE, "resize_and_pad"))
def test_resized_pictures_are_the_recorded_ones(case):
    image = make_image(case["input"]["image"])
    check_picture(mm_utils.resize_and_pad_image(image, tuple(case["input"]["target"])), case["expected"])


@pytest.mark.parametrize("case", cases(FILE, "divide_to_patches"))
def test_tiles_are_the_recorded_ones(case):
    tiles = mm_utils.divide_to_patches(make_image(case["input"]["image"]), case["input"]["patch"])
    for tile, expected in zip(tiles, case["expected"], strict=True):
        check_picture(tile, expected)


@pytest.mark.parametrize("case", cases(FILE, "expand2square"))
def test_padded_pictures_are_the_recorded_ones(case):
    color = case["input"]["background"]
    squared = mm_utils.expand2square(
        make_image(case["input"]["image"]), tuple(color) if isinstance(color, list) else color
    )
    if "raises" in case["expected"]:
        assert (squared.mode, squared.size) == ("RGB", (21, 21))  # the reference fails on grey pictures
    else:
        check_picture(squared, case["expected"])


@pytest.mark.parametrize("case", cases(FILE, "process_anyres"))
def test_anyres_pixels_are_the_recorded_ones(case):
    given = case["input"]
    image, processor = make_image(given["image"]), clip_processor(given["edge"])
    check_pixels(mm_utils.process_anyres_image(image, processor, given["pinpoints"]), case["expected"])


@pytest.mark.parametrize("case", cases(FILE, "process_images"))
def test_processed_images_are_the_recorded_ones(case):
    given, expected = case["input"], case["expected"]
    names = ("image_aspect_ratio", "image_grid_pinpoints")
    config = SimpleNamespace(**{name: given[name] for name in names if name in given})
    images, processor = [make_image(spec) for spec in given["images"]], clip_processor(given["edge"])
    if not images:
        with pytest.raises(ImageError, match="no images"):
            process_images(images, processor, config)
        return
    pixels = process_images(images, processor, config)
    if "stacked" in expected:
        check_pixels(pixels, expected["stacked"])
    elif "list" in expected:
        assert type(pixels) is list
        for got, want in zip(pixels, expected["list"], strict=True):
            check_pixels(got, want)
    else:
        assert pixels.shape == (1, 3, 56, 56)  # grey with padding: the reference fails


@pytest.mark.parametrize("case", cases(FILE, "base64"))
def test_base64_pictures_are_the_recorded_ones(case):
    buffer = io.BytesIO()
    make_image(case["input"]["image"]).save(buffer, format=case["input"]["format"])
    check_picture(load_image_from_base64(base64.b64encode(buffer.getvalue())), case["expected"])


@pytest.mark.parametrize("case", cases(FILE, "model_name"))
def test_model_names_are_the_recorded_ones(case):
    name = mm_utils.get_model_name_from_path(case["input"]["path"])
    assert name == (case["expected"] if isinstance(case["expected"], str) else "checkpoint-5")


# ---------------------------------------------------------------------------------------------- tiling,
# processing


def test_pinpoints_may_be_any_list_and_bad_ones_are_refused():
    for form in ([[28, 56], [56, 28]], ((28, 56), (56, 28)), "[(28, 56), [56, 28]]"):
        assert mm_utils.get_anyres_image_grid_shape((100, 40), form, 28) == (2, 1)
    for bad in ("__import__('os')", "[1, 2]", 5, "[[1, 2, 3]]", "[[28,"):
        with pytest.raises(UserError, match="image_grid_pinpoints is"):
            mm_utils.parse_grid_pinpoints(bad)
    with pytest.raises(UserError, match="empty"):
        mm_utils.parse_grid_pinpoints([])


def test_anyres_without_pinpoints_is_refused():
    with pytest.raises(UserError, match="image_grid_pinpoints"):
        process_images(
            [make_image({"w": 8, "h": 8})], clip_processor(28), SimpleNamespace(image_aspect_ratio="anyres")
        )


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 4000)])
@pytest.mark.parametrize("rule", [None, "pad", "anyres"])
def test_extreme_shapes_are_processed_in_little_memory(size, rule):
    config = SimpleNamespace(image_aspect_ratio=rule, image_grid_pinpoints=[[336, 672], [672, 336]])
    pixels = process_images([make_image({"w": size[0], "h": size[1]})], clip_processor(336), config)
    assert pixels.shape[-3:] == (3, 336, 336)
    assert torch.isfinite(pixels).all()


def test_cutting_a_strip_hardly_changes_what_the_crop_shows(monkeypatch):
    image, processor = make_image({"w": 5, "h": 900, "seed": 3}), clip_processor(56)
    whole = process_images([image], processor, SimpleNamespace())
    monkeypatch.setattr(mm_utils, "_MAX_RESIZED_PIXELS", 0)
    assert (process_images([image], processor, SimpleNamespace()) - whole).abs().mean() < 0.05


def test_padding_that_would_exhaust_the_memory_is_refused():
    with pytest.raises(ImageError, match="crop it first"):
        mm_utils.expand2square(Image.new("RGB", (1, 30000)), (0, 0, 0))


def test_a_text_about_an_end_of_text_token_keeps_all_its_ids():
    class NeoxLike:
        """Adds no start token, but has one that a text may begin with."""

        bos_token_id = 0

        def __call__(self, text):
            return SimpleNamespace(input_ids=[0 if char == "|" else ord(char) for char in text])

    assert tokenizer_image_token("|a<image>bc<image>|d", NeoxLike()) == [0, 97, -200, 98, 99, -200, 100]


# ---------------------------------------------------------------------------------------------------------
# stopping


@pytest.mark.parametrize("case", cases(FILE, "stopping"))
def test_generation_stops_at_the_recorded_steps(case, tokenizers):
    given, expected = case["input"], case["expected"]
    tokenizer = tokenizers[given["tokenizer"]]
    prompt = torch.tensor([tokenizer(given["prompt"]).input_ids])
    criteria = KeywordsStoppingCriteria(given["keywords"], tokenizer, prompt)
    assert [ids.tolist() for ids in criteria.keyword_ids] == expected["keyword_ids"]
    assert (criteria.max_keyword_len, criteria.start_len) == (
        expected["max_keyword_len"],
        expected["start_len"],
    )
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in given["generated"]]
    stops = []
    for step in range(max(map(len, rows)) + 1):
        batch = [prompt[0].tolist() + [row[min(i, len(row) - 1)] for i in range(step)] for row in rows]
        stops.append(criteria(torch.tensor(batch), None).all().item())
    assert stops == expected["stops"]


def stopping_steps(criteria, row):
    return [criteria(torch.tensor([row[:step]]), None).tolist() == [True] for step in range(1, len(row) + 1)]


def test_generation_from_embeddings_sees_only_new_ids(tokenizers):
    """The reference searches a wrong slice here: it misses keywords early and finds them late."""
    tokenizer = tokenizers["tiny_tokenizer"]
    prompt = tokenizer_image_token(
        "USER: <image>\nstop or go? " * 3 + "ASSISTANT:", tokenizer, return_tensors="pt"
    )
    criteria = KeywordsStoppingCriteria(["stop"], tokenizer, prompt[None])
    row = tokenizer(
        "yes, please stop right here and now, thank you very much", add_special_tokens=False
    ).input_ids
    texts = [tokenizer.decode(row[:step]) for step in range(1, len(row) + 1)]
    first = next(step for step, text in enumerate(texts) if "stop" in text)
    steps = stopping_steps(criteria, row)
    assert steps.index(True) == first
    # one of the last two tokens is part of the keyword; after that it is over
    assert not any(steps[:first]) and not any(steps[first + criteria.max_keyword_len :])


def test_rows_of_a_batch_stop_one_by_one(tokenizers):
    tokenizer = tokenizers["tiny_tokenizer"]
    criteria = KeywordsStoppingCriteria(["</s>"], tokenizer, torch.tensor([[1, 5, -200, 6, 7, 8, 9]]))
    assert criteria(torch.tensor([[5, 2], [5, 6]]), None).tolist() == [True, False]
    assert criteria.call_for_batch(torch.tensor([[5, 2]]), None) is True


def test_generate_takes_the_criteria(tokenizers):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizers["tiny_tokenizer"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.tensor([tokenizer("hello").input_ids])
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    free = model.generate(prompt, **options)[0, prompt.shape[1] :].tolist()
    keyword = tokenizer.decode(free[3:5])
    criteria = KeywordsStoppingCriteria([keyword], tokenizer, prompt)
    stopped = model.generate(prompt, stopping_criteria=[criteria], **options)[0, prompt.shape[1] :].tolist()
    assert len(stopped) < len(free) and free[: len(stopped)] == stopped
    assert keyword in tokenizer.decode(stopped)


# -------------------------------------------------------------------------------------------------- reading
# pictures


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
    "text": (b"just some text, no picture", "not in a picture format"),
    "truncated_png": (encoded(NOISE)[:4000], "damaged"),
    "truncated_jpeg": (encoded(NOISE, "JPEG")[:900], "damaged"),
    "cut_header": (encoded(NOISE)[:20], "damaged|not in a picture format"),
    "20000x20000": (huge_png(20000, 20000), "too large|at most"),
    "float": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    "postscript": (encoded(RED, "EPS"), "PostScript"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused_in_one_sentence(name, tmp_path):
    content, message = BAD[name]
    file = tmp_path / "picture.png"
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


class Server(BaseHTTPRequestHandler):
    """Answers each path with one of the misbehaviours that a web server may have."""

    def do_GET(self) -> None:
        if self.path.startswith("/redirect"):
            target = {
                "/redirect": "/picture",
                "/redirect-loop": "/redirect-loop",
                "/redirect-file": "file:///etc/passwd",
            }
            self.send_response(302)
            self.send_header("Location", target[self.path])
            self.end_headers()
            return
        picture = encoded(RED)
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path in ("/picture", "/cut"):
            self.send_header("Content-Length", str(len(picture)))
        elif self.path == "/announced":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        if self.path == "/picture":
            self.wfile.write(picture)
        elif self.path == "/cut":
            self.wfile.write(picture[:50])
        elif self.path == "/page":
            self.wfile.write(b"<html>no picture</html>")
        elif self.path in ("/endless", "/drip"):
            end = time.monotonic() + 10
            while time.monotonic() < end:
                try:
                    self.wfile.write(b"x" * (100_000 if self.path == "/endless" else 1))
                except OSError:
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


@pytest.mark.parametrize("path", ["/picture", "/redirect"])
def test_pictures_are_loaded_from_urls(path, server):
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
        ("/page", "not in a picture format"),
    ],
)
def test_bad_urls_are_refused_in_time(path, message, server):
    start = time.monotonic()
    with pytest.raises(ImageError, match=message):
        load_image(server + path, timeout_s=0.5, max_bytes=300_000)
    assert time.monotonic() - start < 5


def test_an_unreachable_host_is_refused(server):
    with pytest.raises(ImageError, match="does not load: ConnectionError"):
        load_image("http://127.0.0.1:9/picture.png", timeout_s=2)


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


def test_kept_pixels_are_never_more_than_the_picture_has():
    for width, height in [(1, 1), (10, 10), (5000, 17)]:
        best = mm_utils.select_best_resolution((width, height), [(336, 672), (672, 336), (672, 672)])
        assert best is not None and math.prod(best) in (336 * 672, 672 * 672)
    assert mm_utils.select_best_resolution((5, 5), []) is None
