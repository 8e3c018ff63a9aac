#!/usr/bin/env bash
# The whole story, small: an English base model learns Chinese. Every line is a command that a user would type.
# Usage: demo.sh [DIRECTORY]   (default runs/demo; what is there is deleted first)
set -euo pipefail
RUN=${1:-runs/demo}
HERE=$(cd "$(dirname "$0")" && pwd)
TRAIN=$(cd "$HERE/../.." && pwd)/train.py
rm -rf "$RUN"
mkdir -p "$RUN/figures"

# stage NAME COMMAND...: say what is done, keep its log, note how long it took
stage() {
    local name=$1 started=$SECONDS
    shift
    printf '\n\033[1m%s\033[0m\n  $ %s\n' "$name" "$*"
    "$@" || { echo "error: stage $name failed; see the lines above" >&2; exit 1; }
    printf '%s\t%s\n' "$name" $((SECONDS - started)) >> "$RUN/seconds.tsv"
}
train() { OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 "$TRAIN" --plugin zero2 --max_length 256 --micro_batch_size 4 \
    --weight_decay 0.1 --save_interval 100000 "$@"; }
evaluate() { python -m colossal_llama.evaluate --model "$1" --data "$RUN/text/heldout.jsonl" --max_length 256 --json > "$2"; }
generate() { python -m colossal_llama.generate --model "$1" --prompt 北京市的经济 "The following function returns" \
    --max_new_tokens 40 --json > "$2"; }
compare() { compare_tokenizers "$RUN/text/tokenizer" "$RUN/tokenizer" --data "$RUN/text/heldout.jsonl" --json > "$1"; }

stage text python "$HERE/make_text.py" --target_dir "$RUN/text"

# A base model that reads English: this is what a team would download instead.
stage base_bins prepare_pretrain_dataset --data_input_dirs "$RUN/text/base_en" --tokenizer_dir "$RUN/text/tokenizer" \
    --data_cache_dir "$RUN/cache" --data_arrow_output_dir "$RUN/base_bins" --max_length 256 --num_spliced_dataset_bins 2
stage base_start init_model --from_config "$RUN/text/model.json" --target_tokenizer_path "$RUN/text/tokenizer" \
    --target_model_path "$RUN/base_start" --seed 1
stage base_training train --pretrained "$RUN/base_start" --dataset "$RUN/base_bins" --save_dir "$RUN/base" \
    --lr 3e-3 --max_steps 150
stage base_evaluation evaluate "$RUN/base/modeling" "$RUN/figures/base.json"

# Stage 1: pieces from the Chinese text, and a tokenizer that can produce each of them.
stage train_pieces train_pieces --data_input_dirs "$RUN/text/train" --categories zh_news,zh_reviews \
    --tokenizer_dir "$RUN/text/tokenizer" --num_pieces 4000 --output_file "$RUN/pieces.jsonl"
stage init_tokenizer init_tokenizer --source_tokenizer_dir "$RUN/text/tokenizer" \
    --target_tokenizer_dir "$RUN/tokenizer" --expand_tokens_file "$RUN/pieces.jsonl"

# Stage 2: the model grows; a new row begins as the mean of the rows that used to spell its piece.
stage init_model init_model --source_model_and_tokenizer_path "$RUN/base/modeling" \
    --target_tokenizer_path "$RUN/tokenizer" --target_model_path "$RUN/init_model"
stage init_evaluation evaluate "$RUN/init_model" "$RUN/figures/after_init.json"

# Stage 3: four categories, two of them English as replay, into two buckets.
stage bins prepare_pretrain_dataset --data_input_dirs "$RUN/text/train" --tokenizer_dir "$RUN/tokenizer" \
    --data_cache_dir "$RUN/cache" --data_arrow_output_dir "$RUN/bins" --max_length 256 --num_spliced_dataset_bins 2

# Stage 4: first the embeddings alone, then the whole model from there.
stage warmup train --pretrained "$RUN/init_model" --dataset "$RUN/bins" --save_dir "$RUN/warmup" \
    --freeze_non_embeds_params --lr 2e-3 --max_steps 50
stage warmup_evaluation evaluate "$RUN/warmup/modeling" "$RUN/figures/after_warmup.json"
stage training train --pretrained "$RUN/init_model" --load_checkpoint "$RUN/warmup/modeling" --dataset "$RUN/bins" \
    --save_dir "$RUN/full" --lr 2e-3 --max_steps 200
stage final_evaluation evaluate "$RUN/full/modeling" "$RUN/figures/final.json"

# What has changed.
stage compare compare "$RUN/figures/tokenizers.json"
stage samples_before generate "$RUN/base/modeling" "$RUN/figures/samples_before.json"
stage samples_after generate "$RUN/full/modeling" "$RUN/figures/samples_after.json"
python "$HERE/report.py" --run_dir "$RUN"
