"""Trains one model, evaluates it and writes its metrics and report."""

from spectran_jax import cluster_flags
from spectran_jax.flags import config_from_flags, define_config_flags, define_path, run

SYNOPSIS = """
Trains one model, evaluates it by full ranking, and writes metrics.json and report.html to --workdir.

  python -m experiments.train --item_encoder=id --workdir=runs/first
  python -m experiments.train --dataset=files --interactions=clicks.tsv --items=products.jsonl --workdir=runs/mine

The same command again resumes from the last checkpoint and goes on to the same end. On several hosts, start it once on
each; --workdir must be a folder that all of them share.
"""

_WORKDIR = define_path("workdir", "Folder of this run: configuration, checkpoints, metrics and report.")
define_config_flags()
cluster_flags.define_cluster_flags()


def main() -> None:
    """Runs the experiment that the flags describe."""
    from spectran_jax.training.run import train_and_report

    train_and_report(config_from_flags(), _WORKDIR.value, cluster_flags.cluster_from_flags())


if __name__ == "__main__":
    run(main, SYNOPSIS)
