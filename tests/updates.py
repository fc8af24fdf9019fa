"""Some updates of a run, made by hand, and what came of them."""

import functools

import jax
import numpy as np

from spectran_jax.training import partitioning
from spectran_jax.training.feed import training_batches
from spectran_jax.training.programs import build_programs
from spectran_jax.training.setup import prepare

# Where every update is proportional to its gradient, an untouched row does not move under dense updates either.
SGD = {"optimizer": "sgd", "learning_rate": 0.3, "warmup_steps": 0, "dropout": 0.0, "clip_norm": 1.0}


class Run:
    """Some updates of a configuration, by hand. Arrays are there once they are asked for: not every test does."""

    def __init__(self, config):
        self.setup = prepare(config)
        self.programs = build_programs(self.setup, 100)
        self.batches = training_batches(self.setup, 9)

    @functools.cached_property
    def frozen(self):
        return self.setup.place()

    @functools.cached_property
    def state(self):
        return self.programs.init()

    def steps(self, count):
        metrics = []
        for _ in range(count):
            batch = partitioning.put_batch(self.setup.mesh, next(self.batches))
            self.state, found = self.programs.train_step(self.state, self.frozen, batch)
            metrics.append({name: float(value) for name, value in jax.device_get(found).items()})
        return metrics


def params(run):
    return jax.device_get(run.state.params)


def first_moments(run):
    """Adam's first moments of the ID table."""
    leaves = jax.tree_util.tree_leaves_with_path(run.state.opt_state)
    (found,) = (x for path, x in leaves if ".mu" in jax.tree_util.keystr(path) and "id_embedding" in str(path))
    return found


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)
