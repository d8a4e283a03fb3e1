#!/bin/bash
# A learner on some nodes and samplers on others: one heterogeneous job of Slurm.
#
#   mkdir -p /shared/run
#   STORE=file:///shared/run/store WORKDIR=/shared/run \
#     sbatch experiments/launch/slurm.sh --config=quickstart --config.train.steps=500
#
# from a folder where `tis` is on the PATH (. .venv/bin/activate). STORE and WORKDIR are
# seen by all nodes. What a node must have is set below, or before the script's name:
# sbatch --gpus-per-node=8 : --gpus-per-node=8 slurm.sh ...
# A learner of four nodes, a process on each, is `sbatch --nodes=4 --ntasks=4 slurm.sh ...`.
#
#SBATCH --job-name=tis
#SBATCH --output=tis-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --requeue
# Ninety seconds before the end every process has a SIGTERM: the learner saves its state.
#SBATCH --signal=TERM@90
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=4
#SBATCH hetjob
#SBATCH --nodes=1 --ntasks=2 --cpus-per-task=2
set -uo pipefail

: "${STORE:?the URL of the store, that all nodes reach}"
: "${WORKDIR:?a folder that all nodes see}"
export STORE
# How often a job whose learner was interrupted or killed puts itself back in the queue.
restarts=${RESTARTS:-20}

# A sampler that dies starts again under its name, which is its task's.
# shellcheck disable=SC2016
srun --het-group=1 --kill-on-bad-exit=0 bash -c '
  until tis sample --store="$STORE" --name="slurm$SLURM_PROCID" --patience=3600; do
    sleep 5
  done' &
samplers=$!

# All processes of the learner end by themselves when one does, each with its own code;
# the highest is the step's. This script runs on the node of the first.
# shellcheck disable=SC2016
srun --het-group=0 --kill-on-bad-exit=0 bash -c '
  exec tis train "$@" --config.processes.count="$SLURM_STEP_NUM_TASKS" \
    --config.processes.index="$SLURM_PROCID"' tis \
  "$@" --workdir="$WORKDIR" --config.store.url="$STORE" --config.sampler.count=0 \
  --config.processes.coordinator="$(hostname):$((20000 + SLURM_JOB_ID % 20000))"
code=$?

# 75: interrupted, its state saved, or a process lost. Above 128: killed. The same command
# goes on. Anything else it has refused, in words, and would refuse again.
if ((code == 75 || code > 128)) && ((${SLURM_RESTART_COUNT:-0} < restarts)); then
  echo "the learner ended with exit code $code: the job goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
elif ((code == 0)); then
  wait "$samplers" # The store has told them to stop.
else
  kill "$samplers"
fi
exit "$code"
