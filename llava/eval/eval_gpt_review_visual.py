"""Review answers about COCO images with a judge: `python -m llava.eval.eval_gpt_review_visual`."""

from __future__ import annotations

from llava.eval.judges.flags import review_parser
from llava.utils import accept_any_text, lazy_names, run_program

__getattr__ = lazy_names(
    __name__,
    {"get_eval": "llava.eval.judges.program", "parse_score": "llava.eval.judges.replies"},
)


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = review_parser("eval_gpt_review_visual", "visual").parse_args()
    from llava.eval.judges.program import review  # loads the readers of benchmarks' files

    review(args, "visual")


if __name__ == "__main__":
    run_program(main)
