r"""Merges a LoRA checkpoint into its base and writes the whole model.

python scripts/merge_lora_weights.py --model-path ./checkpoints/llava-v1.5-7b-lora \
    --model-base lmsys/vicuna-7b-v1.5 --save-model-path ./checkpoints/llava-v1.5-7b-merged
"""

from llava.arguments import ProgramParser, local_path, output_path
from llava.mm_utils import get_model_name_from_path
from llava.utils import run_program


def main() -> None:
    """Parse the command line and merge."""
    parser = ProgramParser(description="Merge LoRA weights into their base model.")
    parser.add_argument(
        "--model-path", type=local_path, required=True, help="folder or hub name of the LoRA checkpoint"
    )
    parser.add_argument(
        "--model-base",
        type=local_path,
        default=None,
        help="folder or hub name of the base model it was trained on",
    )
    parser.add_argument("--save-model-path", type=output_path, required=True, help="folder to write")
    parser.add_argument(
        "--dtype",
        default="float16",
        help="float16, bfloat16, float32, or auto (that of the adapter's config)",
    )
    args = parser.parse_args()
    from llava.model.tools.extract import merge_lora  # loads torch and transformers

    name = get_model_name_from_path(args.model_path)
    merge_lora(args.model_path, args.model_base, args.save_model_path, name, dtype=args.dtype)
    print(f"wrote {args.save_model_path}")


if __name__ == "__main__":
    run_program(main)
