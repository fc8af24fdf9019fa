"""What a trained SpecTran adapter is made of, in NumPy: for a run's page and for studies of many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from spectran_jax.training import partitioning

if TYPE_CHECKING:  # it imports every module of a model
    from spectran_jax.training.setup import Setup


class Adapter(NamedTuple):
    """An adapter, float32; None for parts that it does without."""

    sigma: Float[np.ndarray, "r"]
    weights: Float[np.ndarray, "d r"]
    """W as it multiplies u."""
    attention: Float[np.ndarray, "d r"] | None = None
    """phi(Z)."""
    diagonal: Float[np.ndarray, "n"] | None = None
    """p(sigma) of the first min(d, r) components."""
    taylor: Float[np.ndarray, "P1"] | None = None
    threshold: Float[np.ndarray, ""] | None = None
    """lambda."""


def adapter_of(setup: Setup, params: Any) -> Adapter:
    """The adapter with these parameters of a `spectran` model; all processes of a run call it."""
    assert setup.spectrum is not None
    sigma = np.asarray(setup.spectrum.sigma, np.float32)

    def read(params: Any) -> Any:
        # Of the frozen arrays, the adapter reads sigma alone.
        variables = {"params": params, "frozen": {"item_encoder": {"sigma": sigma}}}
        return setup.model.apply(
            variables, method=lambda m: (m.item_encoder.parts(), m.item_encoder.adapter.diagnostics(sigma))
        )

    everywhere = partitioning.replicated(setup.mesh)
    parts, values = jax.device_get(jax.jit(read, out_shardings=everywhere)(params))
    return Adapter(sigma, parts.weights, parts.attention, parts.diagonal, values.get("taylor"), values.get("threshold"))
