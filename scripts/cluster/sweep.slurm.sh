#!/usr/bin/env bash
# A sweep or search by an array of Slurm's jobs, each of which takes runs until none is left:
#   sbatch --array=0-7 scripts/cluster/sweep.slurm.sh sweep --solver S --set force_decay=0,1e-4,1e-3 --out runs
# From a folder that all of them share; results.csv is whole when the last one has ended. The same without a script,
# from a login node: forcereg sweep ... --executor slurm --jobs 8 --resource partition=gpu --resource gres=gpu:1
#SBATCH --job-name=forcereg-runs
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=forcereg-%A_%a.log
# What a job was at when its time was up is taken up by the others, or by the next array, from its newest snapshot.
set -euo pipefail
export PYTHONSAFEPATH=1

case ${1:-} in
  sweep | tune) ;;
  *)
    echo "sweep.slurm.sh: expected sweep or tune and its options, found '${1:-}'" >&2
    exit 2
    ;;
esac
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
exec srun forcereg "$@"
