"""The spectrum of the text embeddings: decompose them once, project new items for ever.

    X - mean = U diag(S) V^T,    u = sqrt(n) U,    sigma = S / S[0]

Everything here runs on the host in float64 (LAPACK) and hands out coordinates as float32, bfloat16 or int8. It is
done once per catalogue, and float64 is what makes the Gram route safe: squaring X squares its condition number, so
that a float32 Gram matrix is wrong by over 1 % below 5e-4 of the largest singular value. A TPU has no
float64 unit and no float64 eigensolver; it could form X^T X in float32 only, which is that very loss: `precision`
float32 takes it, for singular values from 1e-3 of the largest on, and with it the accelerators' speed.

`decompose_shared` is for several processes: the programs of `sharded` over the devices of all.
"""

from spectran_jax.spectral.decomposition import decompose, decompose_shared, decompose_to, project
from spectran_jax.spectral.spectrum import VERSION, Spectrum
from spectran_jax.spectral.storage import DTYPES, dequantise

__all__ = [
    "DTYPES",
    "VERSION",
    "Spectrum",
    "decompose",
    "decompose_shared",
    "decompose_to",
    "dequantise",
    "project",
]
