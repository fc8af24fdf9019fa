"""SpecTran in JAX: a spectral-aware transformer adapter for LLM-enhanced sequential recommendation."""
