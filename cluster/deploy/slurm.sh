#!/usr/bin/env bash
# A training run on nodes of Slurm. From the checkout, which all nodes see under the same path, after `make setup`:
#
#     sbatch --nodes 4 cluster/deploy/slurm.sh --data /shared/imagenet-256 --run /shared/runs/first --workers 1:4
#
# The arguments are those of jobs/train.py. Ray starts on each node of the allocation and ends with it. A run that was
# interrupted or requeued goes on from its latest checkpoint. For nodes with GPUs add `--gpus-per-node 8` or the like.
#SBATCH --job-name=alexnet-at-scale
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
. .venv/bin/activate
# A token of this job alone: without one, anyone who reaches a port could run code.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_ADDRESS=auto
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- python jobs/train.py "$@"
