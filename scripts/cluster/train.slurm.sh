#!/usr/bin/env bash
# One training on several machines by Slurm: sbatch scripts/cluster/train.slurm.sh SOLVER [OPTION OF train]...
# From a folder that all of them share. Its prefix, and so its snapshots, lie there too.
#SBATCH --job-name=forcereg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=1-00:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=forcereg-%j.log
# Two minutes before the time is up every process is told to stop: rank 0 saves. Whoever submits it again, or Slurm where
# a machine fails, goes on from there by --resume auto.
set -euo pipefail
export PYTHONSAFEPATH=1

if [[ $# == 0 ]]; then
  echo "train.slurm.sh: give a solver: sbatch $0 SOLVER [OPTION OF train]..." >&2
  exit 2
fi
if [[ -z ${SLURM_JOB_NODELIST:-} ]]; then
  echo "train.slurm.sh: this isn't a job of Slurm's; submit it by sbatch" >&2
  exit 2
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 0 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))" \
  -m forcereg train --resume auto --solver "$@"
