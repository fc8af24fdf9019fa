"""Updates in bfloat16: of tables that are stored so, and of gradients that are not summed so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from updates import Run, first_moments

from spectran_jax.training import partitioning


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bfloat16_table_learns(tiny_config, precision):
    run = Run(tiny_config.replace(table_dtype="bfloat16", precision=precision))
    assert run.state.params["item_encoder"]["id_embedding"].dtype == jnp.bfloat16
    assert run.state.params["backbone"]["position_embedding"].dtype == jnp.float32
    losses = [metrics["loss"] for metrics in run.steps(12)]
    assert run.state.params["item_encoder"]["id_embedding"].dtype == jnp.bfloat16
    assert first_moments(run).dtype == jnp.float32
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize(
    "model", [{"backbone": "sasrec"}, {"backbone": "bert4rec"}, {"backbone": "hstu"}, {"item_encoder": "rlmrec"}]
)
def test_gradients_are_not_summed_in_bfloat16(tiny_config, model):
    """Such a sum stops growing at 256 times its terms, and a popular item stands thousands of times in a batch."""
    run = Run(tiny_config.replace(precision="bfloat16", **model))
    batch = partitioning.put_batch(run.setup.mesh, next(run.batches))
    shapes = run.programs.state, run.setup.abstract(), batch
    traced = jax.make_jaxpr(lambda *given: run.programs.train_step(*given))(*shapes)
    sums = [each.invars[0].aval.dtype for each in equations(traced.jaxpr) if each.primitive.name == "scatter-add"]
    assert sums
    assert jnp.bfloat16 not in sums


def equations(jaxpr):
    """Of a program and all programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            program = getattr(inner, "jaxpr", inner)
            if hasattr(program, "eqns"):
                yield from equations(program)
