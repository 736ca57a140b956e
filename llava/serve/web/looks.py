"""How the page looks: its texts, its style sheet, and the images of its examples, which are drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

title_markdown = """
# LLaVA
Large Language and Vision Assistant: ask about images.
"""

tos_markdown = """
The answers come from a machine and may be wrong. Questions, answers and votes are logged by whoever runs
this page; images are not.
"""

learn_more_markdown = """
Enter sends, Shift+Enter begins a new line. Images can be uploaded, pasted, dropped, or taken with the
camera; they go in front of the text.
"""

placeholder = "**Ask about an image**, or just ask."

block_css = """
.gradio-container { max-width: 60rem !important; margin: 0 auto !important; }
.gradio-container main { padding: 0.75rem !important; gap: 0.75rem; }
#page-head h1 { margin: 0; font-size: 1.4rem; }
#page-head p { margin: 0; }
#page-note { opacity: 0.85; font-size: 0.85rem; }
#chatbot { min-height: 20rem; }
#chatbot pre { overflow-x: auto; }
#chatbot .message img { max-height: 16rem; object-fit: contain; }
#chatbot .message { overflow-wrap: anywhere; }
/* gradio's own Share would upload images to another site */
#chatbot button[aria-label="Share"], #chatbot button[title="Share"] { display: none !important; }
@media (max-width: 640px) {
  .gradio-container main { padding: 0.25rem !important; }
  #page-head p { display: none; }
}
"""

# Names, for those who cannot see them, of the buttons that gradio leaves without one.
head = """
<script>
(() => {
  const name = () => {
    for (const button of document.querySelectorAll("#chatbot button:not([aria-label])"))
      if (!button.innerText.trim() && button.querySelector("img"))
        button.setAttribute("aria-label", "Show the image");
  };
  new MutationObserver(name).observe(document.documentElement, {childList: true, subtree: true});
})();
</script>
"""

EXAMPLES = (
    ("shapes", "Which shapes are there, and in which colours?"),
    ("digit", "Which digit is this?"),
    ("bars", "Which bar is the highest?"),
)


def draw_examples(folder: Path) -> list[tuple[Path, str]]:
    """Draw the example images into a folder; returns their files, and a question about each."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {"shapes": _shapes(), "digit": _digit(), "bars": _bars()}
    found = []
    for name, question in EXAMPLES:
        images[name].save(folder / f"{name}.png")
        found.append((folder / f"{name}.png", question))
    return found


def _shapes() -> Image.Image:
    image = Image.new("RGB", (336, 336), "#f4f1ea")
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 60, 150, 170), fill="#c0392b")
    draw.ellipse((180, 40, 300, 160), fill="#2471a3")
    draw.polygon([(170, 190), (90, 300), (250, 300)], fill="#1e8449")
    return image


def _digit() -> Image.Image:
    """Draw a three with a thick pen."""
    image = Image.new("RGB", (336, 336), "black")
    draw = ImageDraw.Draw(image)
    draw.arc((98, 50, 228, 172), 200, 90, fill="white", width=30)
    draw.arc((88, 142, 238, 292), 270, 160, fill="white", width=30)
    return image


def _bars(heights: Sequence[int] = (90, 210, 150, 60)) -> Image.Image:
    image = Image.new("RGB", (336, 336), "white")
    draw = ImageDraw.Draw(image)
    colours = ("#7d3c98", "#d68910", "#117a65", "#2e4053")
    for index, (height, colour) in enumerate(zip(heights, colours, strict=True)):
        left = 45 + index * 68
        draw.rectangle((left, 290 - height, left + 48, 290), fill=colour)
    draw.line((30, 290, 310, 290), fill="black", width=4)
    return image
