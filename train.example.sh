#!/usr/bin/env bash
# One experiment is one copy of this file: cp train.example.sh train.my_run.sh, edit the numbers, run it from anywhere.
# The same command starts the experiment and, after a kill, goes on from the newest checkpoint.
# As shipped it continues what `make demo` has prepared, on this machine.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
export PATH="$HERE/.venv/bin:$PATH"

# --- what is trained on what ------------------------------------------------------------------------------------------
PROJECT=example
PRETRAINED=runs/demo/init_model   # output of init_model: the grown model with the new tokenizer beside it
DATASET=runs/demo/bins            # output of prepare_pretrain_dataset: the parent of part-00000, part-00001, ...
SAVE_DIR=runs/$PROJECT            # no blanks in any path: colossalai run joins words without quotes

# --- the cluster ------------------------------------------------------------------------------------------------------
HOSTFILE=$HERE/hostfile.example   # one host name a line, nothing else; cp hostfile.example hostfile and edit
NPROC_PER_NODE=2                  # GPUs of each host (on a machine without any: processes on the CPU)
MASTER_PORT=29500                 # free on the first host
OMP_NUM_THREADS=1                 # CPU threads of a process; about 4 for zero2_cpu on a big host
NCCL_SETTINGS=(                   # uncomment for RDMA; `ibdev2netdev` names the adapters, `ip addr` the interface
    # NCCL_IB_HCA=mlx5_0,mlx5_1
    # NCCL_SOCKET_IFNAME=bond0
    # NCCL_IB_DISABLE=0
)

# --- the numbers ------------------------------------------------------------------------------------------------------
COMMON=(
    --plugin zero2                # up to ~13B on 80 GB GPUs; gemini when memory is short, 3d for tp/pp
    --dataset "$DATASET"
    --max_length 4096             # the model's context; rows are as long as the data was prepared
    --micro_batch_size 4          # as many rows as fit in memory
    --accumulation_steps 1        # raise it until a step has about 4 M tokens on a cluster
    --mixed_precision bf16        # the range of fp32: no loss scaling needed
    --gradient_clipping 1.0
    --weight_decay 0.1
    --save_interval 1000          # a kill loses at most this many steps
    --keep_checkpoints 3          # one of a 7B model with its optimizer is about 90 GB
)

# A clean environment: colossalai run copies every variable to every host, and prints them all when a run fails.
KEPT=(OMP_NUM_THREADS="$OMP_NUM_THREADS")
for name in PATH HOME LANG LD_LIBRARY_PATH CUDA_HOME TMPDIR SSH_AUTH_SOCK \
    $(compgen -e | grep -E '^(NCCL|GLOO|UCX|FI|PET)_' || true); do
    if [ -n "${!name:-}" ]; then KEPT+=("$name=${!name}"); fi
done

# launch SAVE_DIR FLAGS...: one run. colossalai run ends with 0 even if it never started, so look for the result.
launch() {
    local save_dir=$1
    shift
    env -i "${KEPT[@]}" "${NCCL_SETTINGS[@]}" \
        colossalai run --hostfile "$HOSTFILE" --nproc_per_node "$NPROC_PER_NODE" --master_port "$MASTER_PORT" \
        "$HERE/train.py" "${COMMON[@]}" --save_dir "$save_dir" "$@"
    [ -f "$save_dir/modeling/config.json" ] || { echo "error: no finished model in $save_dir; see above" >&2; exit 1; }
}
[ -s "$HOSTFILE" ] || { echo "error: $HOSTFILE: no such file, or empty; write one host name a line" >&2; exit 2; }

# 1. Warm-up: only the embeddings learn, so that the new rows find their place before they can disturb the old layers.
launch "$SAVE_DIR/warmup" --pretrained "$PRETRAINED" \
    --freeze_non_embeds_params --lr 1e-3 --num_epochs 1

# 2. The whole model, from the warm-up's weights, with an optimizer and a schedule of its own.
launch "$SAVE_DIR/full" --pretrained "$PRETRAINED" --load_checkpoint "$SAVE_DIR/warmup/modeling" \
    --lr 3e-4 --num_epochs 1

echo "the finished model: $SAVE_DIR/full/modeling"
