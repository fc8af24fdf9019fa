"""From item text to text embeddings, and from these to their spectrum; both cached by content."""

from spectran_jax.text.embeddings import TextEmbeddings, item_embeddings
from spectran_jax.text.encoders import TextEncoder
from spectran_jax.text.spectrum_store import load_or_decompose

__all__ = ["TextEmbeddings", "TextEncoder", "item_embeddings", "load_or_decompose"]
