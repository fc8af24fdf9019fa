"""Row-sparse optimisers against NumPy written from the formulas, and against Optax where they must agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectran_jax.config import OptimizerConfig
from spectran_jax.training import catalogue
from spectran_jax.training.optimizer import build_optimizer
from spectran_jax.training.row_optimizers import scale_by_row_adam, scale_by_rowwise_adagrad

N, D, STEPS = 7, 3, 6
B1, B2, EPS = 0.9, 0.999, 1e-8


def gradients(seed=0):
    """A step touches some rows; the others have no gradient."""
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        ids = np.sort(rng.choice(N, 3, replace=False))
        yield ids, rng.normal(size=(3, D)).astype(np.float32)


def run_sparse(optimizer, rows, **params):
    """The steps of `gradients` on taken rows, as a training step does it."""
    tree = {"item_encoder": {"id_embedding": jnp.asarray(rows), **params}}
    state = optimizer.init(tree)
    names = ("id_embedding",)
    for ids, grad in gradients():
        ids = jnp.asarray(ids, jnp.int32)
        part, part_state = (catalogue.take(t, ids, names) for t in (tree, state))
        grads = jax.tree.map(jnp.zeros_like, part)
        grads["item_encoder"]["id_embedding"] = jnp.asarray(grad)
        updates, part_state = optimizer.update(grads, part_state, part)
        part = optax.apply_updates(part, updates)
        key = jax.random.key(0)
        tree, state = (catalogue.put(t, p, ids, names, key) for t, p in ((tree, part), (state, part_state)))
    return np.asarray(tree["item_encoder"]["id_embedding"])


def row_adam(rows, rate, kind):
    rows, mu, nu = rows.astype(np.float64), np.zeros((N, D)), np.zeros((N, D))
    count = np.zeros((N, 1))
    for step, (ids, grad) in enumerate(gradients(), 1):
        if kind == "decayed":
            nu *= B2  # of every row, every step
            mu[np.setdiff1d(np.arange(N), ids)] *= B2**0.5
        else:
            nu[ids] *= B2
        mu[ids] = B1 * mu[ids] + (1 - B1) * grad
        nu[ids] += (1 - B2) * grad.astype(np.float64) ** 2
        count[ids] += 1
        times = count[ids] if kind == "counted" else step
        rows[ids] -= rate * (mu[ids] / (1 - B1**times)) / (np.sqrt(nu[ids] / (1 - B2**times)) + EPS)
    return rows


@pytest.mark.parametrize("kind", ["decayed", "lazy", "counted"])
def test_adam_on_touched_rows_is_the_formula(kind):
    rows = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=0.0, table_adam=kind)
    got = run_sparse(build_optimizer(config, 100, ("id_embedding",), steps_per_epoch=1), rows)
    np.testing.assert_allclose(got, row_adam(rows, 0.1, kind), rtol=2e-5, atol=2e-6)
    for other in {"decayed", "lazy", "counted"} - {kind}:
        assert np.abs(got - row_adam(rows, 0.1, other)).max() > 1e-5


def test_a_decayed_second_moment_moves_a_rare_row_as_far_as_dense_adam_does():
    """One row touched at one step in nine, always by the same gradient: per gradient, rate / sqrt(1 / 9) = 3 rates."""
    every, steps = 9, 9 * 500

    def travelled(kind):
        transform = optax.scale_by_adam() if kind in ("dense", "lazy") else scale_by_row_adam(kind)
        params = {"a": jnp.zeros((1, 1))}

        def body(step, carry):
            place, state = carry
            touched = step % every == 0
            updates, after = transform.update({"a": jnp.where(touched, 1.0, 0.0).reshape(1, 1)}, state)
            if kind == "dense":
                return place + updates["a"], after
            # Only the count of all steps goes on where the row is not touched.
            same = lambda new, old: new if new.ndim == 0 else jnp.where(touched, new, old)  # noqa: E731
            return place + jnp.where(touched, updates["a"], 0), jax.tree.map(same, after, state)

        return float(jax.lax.fori_loop(0, steps, body, (jnp.zeros((1, 1)), transform.init(params)))[0][0, 0])

    dense = travelled("dense")
    assert dense == pytest.approx(500 * 3, rel=0.1)
    assert travelled("decayed") == pytest.approx(dense, rel=0.1)
    assert travelled("lazy") < 0.75 * dense  # and less with every further step


@pytest.mark.parametrize("gap", [10, 2_000, 20_000])
def test_a_row_that_is_touched_again_late_is_not_thrown_far(gap):
    """A large gradient, a long gap, a small one: b1 times the first step, 1 rate, and no more for any gap."""
    transform = scale_by_row_adam("decayed")
    params = {"a": jnp.zeros((1, 1))}
    _, state = transform.update({"a": jnp.full((1, 1), 1e-2)}, transform.init(params))
    updates, _ = transform.update({"a": jnp.full((1, 1), 1e-6)}, state._replace(step=state.step + gap))
    assert 0 < float(updates["a"][0, 0]) < 3.2  # (1 - b1) / sqrt(1 - b2), as bias correction by the step has it


def test_rowwise_adagrad_is_the_formula_with_one_number_a_row():
    rows = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=0.0, table_optimizer="rowwise_adagrad")
    optimizer = build_optimizer(config, 100, ("id_embedding",), steps_per_epoch=1)
    expected, total = rows.astype(np.float64), np.full((N, 1), 1e-8)
    for ids, grad in gradients():
        total[ids] += np.mean(grad.astype(np.float64) ** 2, axis=1, keepdims=True)
        expected[ids] -= 0.1 * grad / (np.sqrt(total[ids]) + 1e-8)
    np.testing.assert_allclose(run_sparse(optimizer, rows), expected, rtol=1e-5, atol=1e-6)
    state = scale_by_rowwise_adagrad().init({"a": jnp.zeros((N, D))})
    assert state.mean_square["a"].shape == (N, 1)


@pytest.mark.parametrize("kind", ["decayed", "counted"])
def test_row_adam_on_all_rows_is_optax_adam(kind):
    params = {"a": jnp.asarray(np.random.default_rng(2).normal(size=(N, D)), jnp.float32)}
    ours, theirs = scale_by_row_adam(kind), optax.scale_by_adam()
    state, reference = ours.init(params), theirs.init(params)
    for seed in range(4):
        grads = {"a": jax.random.normal(jax.random.key(seed), (N, D))}
        got, state = ours.update(grads, state)
        want, reference = theirs.update(grads, reference)
        np.testing.assert_allclose(got["a"], want["a"], rtol=2e-6)


def test_a_row_touched_late_starts_as_the_first_one_did_only_with_its_own_count():
    """By the step, its first update is (1 - b1) / sqrt(1 - b2) = 3.16 times as long."""

    def first_update(transform, waiting):
        params = {"a": jnp.ones((2, D))}
        state = transform.init(params)
        one = jnp.asarray([0])
        for _ in range(waiting):  # the other row is touched, and the count goes on
            part = jax.tree.map(lambda x: x[one] if x.ndim else x, state)
            _, part = transform.update({"a": jnp.ones((1, D))}, part)
            state = jax.tree.map(lambda x, p: x.at[one].set(p) if x.ndim else p, state, part)
        part = jax.tree.map(lambda x: x[jnp.asarray([1])] if x.ndim else x, state)
        return float(transform.update({"a": jnp.ones((1, D))}, part)[0]["a"][0, 0])

    assert first_update(scale_by_row_adam("counted"), 200) == pytest.approx(1, rel=1e-4)
    # After n steps by which nothing has decayed yet: (1 - b1) / sqrt((1 - b2) / (1 - b2^n)).
    expected = 0.1 / np.sqrt(0.001 / (1 - 0.999**201))
    assert first_update(optax.scale_by_adam(), 200) == pytest.approx(expected, rel=1e-3)


def test_weight_decay_reaches_touched_rows_only():
    rows = np.ones((N + 1, D), np.float32)  # the last is touched by no step
    config = OptimizerConfig(optimizer="sgd", learning_rate=0.1, warmup_steps=0, clip_norm=0.0, weight_decay=0.5)
    got = run_sparse(build_optimizer(config, 100, ("id_embedding",), steps_per_epoch=1), rows)
    expected = rows.copy()
    for ids, grad in gradients():
        expected[ids] -= 0.1 * (grad + 0.5 * expected[ids])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_array_equal(got[N], 1)
