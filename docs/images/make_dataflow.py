"""Draws dataflow.svg, the diagram of docs/architecture.md: python docs/images/make_dataflow.py"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1040, 640
BOX_WIDTH, BOX_HEIGHT, STEP = 296, 50, 92
COLUMNS = (22, 372, 722)  # left edges: images, text, labels
IMAGE, TEXT, LABEL, MODEL = "#dbeafe", "#dcfce7", "#fef3c7", "#ede9fe"

# (column, row, colour, what happens, where in the code, what comes out of it)
STEPS = (
    (0, 0, IMAGE, "resize, pad or tile the images", "mm_utils.process_images",
     "(N, 3, 336, 336); anyres: (N, tiles, ...)"),
    (0, 1, IMAGE, "CLIP up to its last layer but one", "multimodal_encoder/clip_encoder.py",
     "(N * tiles, 576, 1024), class token dropped"),
    (0, 2, IMAGE, "projector, e.g. mlp2x_gelu", "multimodal_projector/builder.py",
     "(N * tiles, 576, 4096)"),
    (0, 3, IMAGE, "merge the tiles of each image", "multimodal/splice.py: merge_tiles",
     "per image (P, 4096); one tile: P = 576"),
    (1, 0, TEXT, "render the dialog by its template", "conversation: get_prompt",
     "text with <image> where an image goes"),
    (1, 1, TEXT, "tokenize around <image>", "mm_utils.tokenizer_image_token",
     "input_ids (B, T), each <image> is one id -200"),
    (1, 3, TEXT, "look up the embeddings of the text", "embed_tokens of the LLM",
     "per row (T - images of the row, 4096)"),
    (2, 0, LABEL, "mark the tokens of the answers", "train/labels",
     "labels (B, T), -100 where nothing is learned"),
)  # fmt: skip


def text(x: float, y: float, words: str, size: int, *, weight: str = "normal", fill: str = "#111827") -> str:
    """One centred line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="middle" font-size="{size}" font-weight="{weight}" '
        f'fill="{fill}">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, colour: str, title: str, place: str) -> str:
    """A step: what happens, and where in the code."""
    middle = x + width / 2
    return "\n".join(
        (
            f'<rect x="{x}" y="{y}" width="{width}" height="{BOX_HEIGHT}" rx="7" fill="{colour}" '
            'stroke="#6b7280"/>',
            text(middle, y + 21, title, 14, weight="bold"),
            text(middle, y + 39, place, 12, fill="#4b5563"),
        )
    )


def arrow(x: float, top: float, bottom: float) -> str:
    return f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="#374151" marker-end="url(#head)"/>'


def draw() -> str:
    """Return the whole diagram as SVG."""
    top, join = 62, 62 + 4 * STEP + 16
    parts = []
    titles = ("Images (PIL, any size)", "Dialog", "Dialog (training only)")
    for x, title in zip(COLUMNS, titles, strict=True):
        parts += [text(x + BOX_WIDTH / 2, 26, title, 16, weight="bold")]
        parts += [arrow(x + BOX_WIDTH / 2, 34, top - 4)]
    for column, row, colour, title, place, result in STEPS:
        x, y = COLUMNS[column], top + row * STEP
        middle = x + BOX_WIDTH / 2
        later = [other[1] for other in STEPS if other[0] == column and other[1] > row]
        end = top + min(later) * STEP if later else join
        parts += [box(x, y, BOX_WIDTH, colour, title, place)]
        parts += [arrow(middle, y + BOX_HEIGHT + 22, end - 4)]
        parts += [text(middle, y + BOX_HEIGHT + 17, result, 12, weight="bold", fill="#1e3a8a")]
    wide, middle = WIDTH - 2 * COLUMNS[0], WIDTH / 2
    below = join + BOX_HEIGHT
    parts += [
        box(COLUMNS[0], join, wide, MODEL, "put the image features where the ids are -200, pad the rows",
            "model/splice.py: splice_rows, pad_rows; called by prepare_inputs_labels_for_multimodal"),
        text(middle, below + 19, "inputs_embeds (B, L, 4096); attention_mask, position_ids, labels (B, L); "
             "length of a row: T - images + their P, at most tokenizer_model_max_length", 12,
             weight="bold", fill="#1e3a8a"),
        arrow(middle, below + 25, below + 46),
        box(COLUMNS[0], below + 50, wide, MODEL, "the language model: Llama, Mistral or MPT",
            "model/language_model/*.py, each a mixin in front of transformers' own class"),
        arrow(middle, below + 103, below + 120),
        text(middle, below + 137, "logits (B, L, 32000)  ->  loss in training; new ids, then text, in chat",
             14, weight="bold", fill="#1e3a8a"),
    ]  # fmt: skip
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif">\n'
        '<defs><marker id="head" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#374151"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_name("dataflow.svg").write_text(draw(), encoding="utf-8")
