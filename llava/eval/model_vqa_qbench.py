"""Answer Q-Bench's questions: `python -m llava.eval.model_vqa_qbench`, for the reference's qbench scripts."""

from __future__ import annotations

import argparse
import sys

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import accept_any_text, run_program

__all__ = ["main"]


def main() -> None:
    """Run the program."""
    accept_any_text()
    parser = ProgramParser(
        prog="python -m llava.eval.model_vqa_qbench", description="Answer Q-Bench's questions."
    )
    parser.add_argument(
        "--model-path", type=local_path, required=True, help="folder or hub name of a checkpoint"
    )
    parser.add_argument(
        "--model-base", type=local_path, default=None, help="base of a LoRA or projector-only checkpoint"
    )
    parser.add_argument("--image-folder", type=local_path, required=True, help="folder of the images")
    parser.add_argument("--questions-file", type=local_path, required=True, help="llvisionqa_dev.json")
    parser.add_argument(
        "--answers-file", type=output_path, default="answer.jsonl", help="answers, resumed if it is there"
    )
    parser.add_argument(
        "--lang", choices=("en", "zh"), default="en", help="language of the line (default: en)"
    )
    parser.add_argument("--conv-mode", default="llava_v1", help="prompt template (default: llava_v1)")
    args = parser.parse_args()
    from llava.eval.run.asking_files import answer_file  # loads torch
    from llava.eval.tasks.choice.qbench import QBench
    from llava.eval.tasks.choice.qbench_zh import QBenchZh

    greedy = {"temperature": 0.0, "top_p": None, "num_beams": 1, "num_chunks": 1, "chunk_idx": 0}
    asked = argparse.Namespace(question_file=args.questions_file, **greedy, **vars(args))
    task = QBenchZh() if args.lang == "zh" else QBench()
    sys.exit(answer_file(asked, max_new_tokens=1024, task=task))


if __name__ == "__main__":
    run_program(main)
