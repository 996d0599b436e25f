#!/bin/bash
# A sweep on SLURM: Ray on every node of the allocation, the driver on the first.
#
#   sbatch deploy/slurm.sh sweep=full_ablation model=sdxl data=prompts data.root=prompts.txt run.name=sdxl
#
# Submit it again to go on where it stopped; preempted, it is queued again by itself. Give it a run.name.
#SBATCH --job-name=circuit-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=circuit-sweep-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the checkout}"
source .venv/bin/activate

# A secret of this job, in a file that only its owner reads and that goes with the job.
umask 077
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$SLURM_SUBMIT_DIR/.ray-token-$SLURM_JOB_ID"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
openssl rand -hex 32 > "$RAY_AUTH_TOKEN_PATH"

export RAY_USAGE_STATS_ENABLED=0
export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

srun --kill-on-bad-exit=1 ray symmetric-run \
  --address "$head:$port" \
  --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" \
  --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
  --include-dashboard=false \
  -- python launch.py cluster=ray "cluster.address=$head:$port" "$@"
