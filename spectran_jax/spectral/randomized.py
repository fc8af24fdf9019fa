"""The leading components only, by a randomised range finder."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from spectran_jax.spectral.routes import Options, Solution, checked, leading
from spectran_jax.spectral.rows import Survey, SurveyedRows

OVERSAMPLING = 20
"""p: random directions beside the max_rank that are wanted."""
POWER_ITERATIONS = 3
"""q: each is one pass over X, and sharpens the decay of the spectrum by a power of two more."""

_SEED = 0


def randomized(x: np.ndarray, part: Bool[np.ndarray, "N"], options: Options) -> Solution:
    """The k = max_rank leading components from the range of a random sample; for k far below m.

    Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 53 (2011): algorithm 4.4 (randomised
    subspace iteration) finds an orthonormal Q [m, k + p] that nearly spans the leading right singular vectors, from
    X^T Omega with Omega [n, k + p] Gaussian; algorithm 5.1 takes the SVD of the small rest X Q, here through its Gram
    matrix, as X Q [n, k + p] would not fit in memory. For the same reason Q is orthonormalised after each product
    with X^T X and not between X and X^T too: in float64 that keeps what is above 1e-6 of the largest.

    With an exact Q^T the error of the range is, in expectation (theorem 10.6 for q = 0, corollary 10.10),

        E ||X - X Q Q^T|| <= (1 + sqrt(k / (p - 1)) + e sqrt(k + p) / p sqrt(min(n, m) - k))^(1 / (2q + 1)) sigma_{k+1}

    in the spectral norm, where nothing of rank k is below sigma_{k+1}: with p = 20, q = 3, k = 64 and m = 4,096 the
    factor is 1.88. Components far above sigma_{k+1} come out exact, those next to it, where the spectrum decays
    slowly, come out mixed with what lies below; `gram` has no such error.

    One pass for the sample, q for the powers, one for the Gram matrix (and one for the coordinates): about
    (4q + 6) (k + p) operations a number of X, against m + 2k of `gram`. It pays from m > 18 (k + p) on.
    The same X gives the same components: the seed is fixed.
    """
    rows, basis = range_finder(x, part, options)
    gram = np.zeros((basis.shape[1], basis.shape[1]))
    for _, _, chunk in rows.chunks():
        projected = chunk @ basis
        gram += projected.T @ projected
    roots, vectors = leading(gram, rows.noise, options)
    return Solution(rows, roots, basis @ vectors)


def range_finder(
    x: np.ndarray, part: Bool[np.ndarray, "N"], options: Options
) -> tuple[SurveyedRows, Float[np.ndarray, "m l"]]:
    """Algorithm 4.4 for X^T: the rows, and Q with k + p orthonormal columns, X nearly X Q Q^T; q + 1 passes."""
    width = min(options.max_rank + OVERSAMPLING, x.shape[1])
    rng = np.random.default_rng(_SEED)
    first = Survey(x, part, normalize=options.normalize_rows)
    sample, drawn = np.zeros((x.shape[1], width)), np.zeros(width)
    for _, _, chunk in first.chunks():
        omega = rng.standard_normal((len(chunk), width))
        omega[~chunk.any(axis=1)] = 0  # rows without direction take no part in the mean
        sample += chunk.T @ omega
        drawn += omega.sum(axis=0)
    rows = checked(first.rows(center=options.center))
    sample -= np.outer(rows.mean, drawn)  # (X - 1 mean^T)^T Omega
    basis = np.linalg.qr(sample)[0]
    for _ in range(POWER_ITERATIONS):
        basis = np.linalg.qr(_normal_product(rows, basis))[0]
    return rows, basis


def _normal_product(rows: SurveyedRows, basis: Float[np.ndarray, "m l"]) -> Float[np.ndarray, "m l"]:
    """X^T X Q in one pass."""
    product = np.zeros_like(basis)
    for _, _, chunk in rows.chunks():
        product += chunk.T @ (chunk @ basis)
    return product
