# What all training scripts share: sourced by them, not run. See docs for what each flag does.
#
# A script's paths can be set from outside; flags behind its name are added, and win over the script's own:
#   OUTPUT_DIR=/disk/out bash scripts/v1_5/finetune.sh --num_train_epochs 2
# DEEPSPEED_FLAGS goes to the launcher (--num_gpus 2, --hostfile hosts ...), ZERO_CONFIG replaces the script's
# DeepSpeed config. Relative paths start from the current folder, as they do for any program.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" # this checkout, also when another llava is installed

# the same in every recipe
SHARED_FLAGS=(
    --mm_vision_select_layer -2
    --mm_use_im_start_end False
    --mm_use_im_patch_token False
    --per_device_eval_batch_size 4
    --evaluation_strategy no
    --save_strategy steps
    --save_total_limit 1
    --weight_decay 0.
    --warmup_ratio 0.03
    --lr_scheduler_type cosine
    # The reference's configs for ZeRO leave clipping out, so its models were trained without. Here the configs
    # follow this flag; give --max_grad_norm 1.0 to clip.
    --max_grad_norm 0.
    --logging_steps 1
    --model_max_length 2048
    --gradient_checkpointing True
    --dataloader_num_workers 4
    --lazy_preprocess True
    --report_to wandb
)
# needs a GPU of the Ampere generation or newer
BF16_FLAGS=(--bf16 True --tf32 True)

# launch PROGRAM CONFIG FLAG...: train on every GPU of this machine, or of those in a hostfile. What is trained, from
# what and to where stands in the script's variables.
launch() {
    local program="$ROOT/llava/train/$1" config="${ZERO_CONFIG:-$ROOT/scripts/$2}"
    local paths=(
        --model_name_or_path "$MODEL_PATH"
        --vision_tower "$VISION_TOWER"
        --data_path "$DATA_PATH"
        --image_folder "$IMAGE_FOLDER"
        --output_dir "$OUTPUT_DIR"
    )
    # shellcheck disable=SC2086  # several flags in one variable
    deepspeed ${DEEPSPEED_FLAGS:-} "$program" --deepspeed "$config" "${paths[@]}" "${SHARED_FLAGS[@]}" "${@:3}"
}
