"""Sharded training: mesh and shardings, optimiser, the pure step, the loop, checkpoints."""
