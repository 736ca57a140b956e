"""Review answers about COCO images with a judge: `python -m llava.eval.eval_gpt_review_visual`."""

from __future__ import annotations

from llava.eval.judges.flags import review_parser
from llava.eval.judges.replies import parse_score
from llava.utils import accept_any_text, lazy_names, run_program

__all__ = ["get_eval", "main", "parse_score"]

__getattr__ = lazy_names(__name__, {"get_eval": "llava.eval.judges.program"})


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = review_parser("eval_gpt_review_visual", "visual").parse_args()
    from llava.eval.judges.program import review  # loads the readers of benchmarks' files

    review(args, "visual")


if __name__ == "__main__":
    run_program(main)
