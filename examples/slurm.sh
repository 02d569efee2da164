#!/bin/bash
#SBATCH --job-name=loraprune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
# torchrun gets SIGTERM two minutes before the end: the run saves its state. Submit the job again, and it goes on from there.
#SBATCH --signal=TERM@120

MODEL=${MODEL:-meta-llama/Llama-3.1-8B}
DATA=${DATA:-data.jsonl}
OUT=${OUT:-$PWD/pruned} # on a file system that both nodes see

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=()
compgen -G "$OUT.run/checkpoint-*/loraprune_state.json" > /dev/null && resume=(--resume)

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first_node:29500" \
    -m loraprune prune "$MODEL" --data "$DATA" -o "$OUT" "${resume[@]}"
