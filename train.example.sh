#!/usr/bin/env bash
# One experiment is one copy of this file: cp train.example.sh train.my_run.sh, edit the numbers, and from anywhere:
#   bash train.my_run.sh plan       does it fit, how long does it take, what does it cost: before anything is booked
#   bash train.my_run.sh rehearse   this very run with a shrunken model on this machine's CPU, a kill and a resume
#   bash train.my_run.sh preflight  is every host there, the same, and able to talk
#   bash train.my_run.sh            the run. The same command goes on from the newest checkpoint, whatever has ended it
# As shipped it continues what `make demo` has prepared, on this machine.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
export PATH="$HERE/.venv/bin:$PATH"

# --- what is trained on what ------------------------------------------------------------------------------------------
PROJECT=example
PRETRAINED=runs/demo/init_model   # output of init_model: the grown model with the new tokenizer beside it
DATASET=runs/demo/bins            # output of prepare_pretrain_dataset: the parent of part-00000, part-00001, ...
SAVE_DIR=runs/$PROJECT            # on a file system that all hosts share

# --- the cluster ------------------------------------------------------------------------------------------------------
HOSTFILE=$HERE/hostfile.example   # one host a line; cp hostfile.example hostfile and edit
NPROC_PER_NODE=2                  # GPUs of each host (on a machine without any: processes on the CPU)
GPU=A800-80G                      # for the plan: `python -m colossal_llama.plan --help` lists those it knows
MASTER_PORT=29500                 # free on the first host
MAX_RESTARTS=3                    # after a failure it goes on by itself so often, on the hosts that still answer
export OMP_NUM_THREADS=1          # CPU threads of a process; about 4 for zero2_cpu on a big host
# For RDMA; `ibdev2netdev` names the adapters, `ip addr` the interface. docs/cluster.md says what each one does.
# export NCCL_IB_HCA=mlx5_0,mlx5_1
# export NCCL_SOCKET_IFNAME=bond0

# --- the numbers ------------------------------------------------------------------------------------------------------
COMMON=(
    --plugin zero2                # up to ~13B on 80 GB GPUs; gemini when memory is short, 3d for tp/pp
    --dataset "$DATASET"
    --max_length 4096             # the model's context; rows are as long as the data was prepared
    --micro_batch_size 4          # as many rows as fit in memory: the plan says
    --global_batch_size 8         # rows of a step, on however many hosts; about 1,024 (4 M tokens) on a cluster
    --mixed_precision bf16        # the range of fp32: no loss scaling needed
    --gradient_clipping 1.0
    --weight_decay 0.1
    --save_interval 1000          # a kill loses at most this many steps
    --keep_checkpoints 3          # one of a 7B model with its optimizer is about 90 GB
)
# 1. Warm-up: only the embeddings learn, so that the new rows find their place before they can disturb the old layers.
WARMUP=(--save_dir "$SAVE_DIR/warmup" --pretrained "$PRETRAINED"
    --freeze_non_embeds_params --lr 1e-3 --num_epochs 1)
# 2. The whole model, from the warm-up's weights, with an optimizer and a schedule of its own.
FULL=(--save_dir "$SAVE_DIR/full" --pretrained "$PRETRAINED" --load_checkpoint "$SAVE_DIR/warmup/modeling"
    --lr 3e-4 --num_epochs 1)

# train FLAGS...: one run on all hosts. Ends with another code than 0 unless it is finished: 75 if it was asked to stop.
train() {
    colossalai run --hostfile "$HOSTFILE" --nproc_per_node "$NPROC_PER_NODE" --master_port "$MASTER_PORT" \
        --max_restarts "$MAX_RESTARTS" "$HERE/train.py" "${COMMON[@]}" "$@"
}

check_hosts() {
    python -m colossal_llama.preflight --hostfile "$HOSTFILE" --nproc_per_node "$NPROC_PER_NODE" \
        --master_port "$MASTER_PORT" --pretrained "$PRETRAINED" --dataset "$DATASET" --save_dir "$SAVE_DIR"
}

case "${1:-run}" in
plan)
    for phase in WARMUP FULL; do
        declare -n flags=$phase
        python -m colossal_llama.plan --hostfile "$HOSTFILE" --gpus_per_host "$NPROC_PER_NODE" --gpu "$GPU" \
            "${COMMON[@]}" "${flags[@]}"
    done
    ;;
rehearse)
    train "${WARMUP[@]}" --rehearse
    train "${FULL[@]}" --rehearse
    ;;
preflight) check_hosts ;;
run)
    check_hosts
    train "${WARMUP[@]}"
    train "${FULL[@]}"
    echo "the finished model: $SAVE_DIR/full/modeling"
    ;;
*)
    echo "error: $1: is none of plan, rehearse, preflight and run" >&2
    exit 2
    ;;
esac
