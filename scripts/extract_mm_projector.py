"""Copies the projector out of a whole LLaVA checkpoint into a file for --pretrain_mm_mlp_adapter.

python scripts/extract_mm_projector.py --model-path ./checkpoints/llava-v1.5-7b --output ./mm_projector.bin
"""

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import run_program


def main() -> None:
    """Parse the command line and extract."""
    parser = ProgramParser(description="Extract the multimodal projector of a checkpoint.")
    parser.add_argument(
        "--model-path", type=local_path, required=True, help="folder or hub name of a whole LLaVA model"
    )
    parser.add_argument("--output", type=output_path, required=True, help="file to write (.bin)")
    args = parser.parse_args()
    from llava.model.tools.extract import extract_projector  # loads torch and transformers

    names = extract_projector(args.model_path, args.output)
    print(f"wrote {len(names)} tensors to {args.output}: {', '.join(names)}")


if __name__ == "__main__":
    run_program(main)
