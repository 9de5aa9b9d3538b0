#!/bin/bash
# Train on a Slurm cluster: one process per GPU, started by srun itself, so that signals reach the processes.
#
#   sbatch --nodes 2 training_scripts/launch/slurm.sh training_scripts/recipes/camvid_u2pl.yaml \
#       --dataset path/to/camvid --split path/to/labeled.txt --output_dir runs/camvid_u2pl \
#       --batch_size 2 --unlabelled_batch_size 2 --reference_batch_size 4 --scale_lr true
#
# Submit from the repository's root, with the environment active. What sbatch is told wins over the lines below.
#
# Three minutes before the time limit (and at pre-emption, where the cluster sends the user's signal then) all processes
# get USR1, write a checkpoint and end with 128 + 10. The job then asks to be queued again and goes on from there. After
# SIGTERM it does not: that is scancel, or a pre-emption that Slurm itself queues again because of --requeue.
#
#SBATCH --job-name=u2pl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --output=u2pl-%j.log
#SBATCH --open-mode=append
set -u

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Below the ports that systems hand out by themselves; jobs that share a machine get different ones.
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
# srun does not inherit --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# exec: a shell that stayed in between would be ended by the signal, and srun would take that for the end.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python training_scripts/train_u2pl.py "$@"' train_u2pl "$@"
# The highest of all processes' codes; one that was killed while another had ended counts 128 + 9, which is less.
code=$?

if [ "$code" -eq $((128 + $(kill -l USR1))) ]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "Slurm does not queue the job again: submit it once more to go on" >&2
fi
exit "$code"
