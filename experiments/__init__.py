"""Commands: one absl-flags main a file; the logic is in spectran_jax."""
