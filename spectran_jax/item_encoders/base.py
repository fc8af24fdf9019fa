"""The protocol of item encoders, and what they are built from.

Arrays that training reads and never changes (spectral coordinates, the mask of trained items) come from the
collection "frozen", never from parameters or captured constants. Auxiliary losses are what `auxiliary` returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from spectran_jax.config import EncoderConfig
from spectran_jax.layout import SequenceLayout

if TYPE_CHECKING:
    from spectran_jax.spectral import Spectrum

Rows = dict[str, Array]
"""What `encode` needs of each item, by name; leading axes are those of the ids asked for."""


@dataclasses.dataclass(frozen=True)
class ItemSource:
    """What item encoders are built from. All arrays are NumPy, or behave like it."""

    num_items: int
    counts: Int[np.ndarray, "N"]
    """Training interactions of each item; an item with none has a zero ID part."""
    spectrum: Spectrum | None = None
    """Of it, encoders read u [N, r] (zero rows for items without text) and sigma [r]."""
    text: Float[np.ndarray, "N m"] | None = None
    """Text embeddings as they are stored, maybe memory-mapped; zero rows for items without text."""
    normalize_rows: bool = True
    """Whether encoders that read `text` scale each row to unit length, as the spectrum does."""
    center: bool = True
    """Whether they subtract the mean row, as the spectrum does."""


class StepView(NamedTuple):
    """What a training step has computed, for auxiliary losses. The step's items are numbered 0 .. U - 1."""

    vectors: Float[Array, "U d"]
    """What `encode` gave. Which items are here beside the batch's depends on the loss: go by `item_at`, `target_at`."""
    item_at: Int[Array, "B L"]
    """int32 number of the item at each position, those hidden from the backbone included; anything on padding."""
    layout: SequenceLayout
    states: Float[Array, "B L d"]
    """User states as they are scored, float32; anything on padding."""
    target_at: Int[Array, "S"]
    """int32 number of each supervised position's target."""
    weight: Float[Array, "S"]
    """float32: 1 on supervised positions, 0 on padding."""


class ItemEncoder(nn.Module, kw_only=True):
    """The protocol. `__call__(ids)` computes only the rows asked for and equals `table()[ids]`.

    An encoder knows its items by row alone: cloned with another `num_items`, and given those rows of every array
    that has one row an item, it is the encoder of a part of the catalogue. That is how a training step touches only
    the items of its batch (`training/catalogue.py`), so the names of such arrays are declared here. Its fields are
    hashable, as what is compiled for a model is kept by the model: arrays are frozen arrays or parameters.
    """

    num_items: int

    item_params: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that have one row an item."""
    item_arrays: ClassVar[tuple[str, ...]] = ()
    """Names of the frozen arrays that have one row an item."""
    wide_arrays: ClassVar[tuple[str, ...]] = ()
    """Those of `item_arrays` that `--spectrum_memory` may keep off the device; `diagnostics` must not read them."""
    needs_spectrum: ClassVar[bool] = False
    """Whether `ItemSource.spectrum` must be there."""
    needs_text: ClassVar[bool] = False
    """Whether `ItemSource.text` must be there."""

    @classmethod
    def knows_cold_items(cls) -> bool:
        """Whether an item that no training history holds has a vector all the same, from its text."""
        return cls.needs_spectrum or cls.needs_text

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """The fields of the module that `config` asks for; raises `InputError` where the source does not fit it."""
        raise NotImplementedError

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """The arrays of the collection "frozen"."""
        raise NotImplementedError

    @classmethod
    def new_rows(cls, new: ItemSource, catalogue: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """The arrays of `item_arrays` for items beyond the catalogue, known by their text alone.

        All else that `frozen` makes stays the catalogue's. Here for encoders whose rows depend on nothing but the item
        and the spectrum, that of `new`: the catalogue's, with the new items' coordinates for its u.
        """
        made = cls.frozen(new, config)
        return {name: made[name] for name in cls.item_arrays}

    @classmethod
    def one_row(cls, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The frozen arrays with a row of zeros where they have one an item: initial values depend on no item's."""
        return {name: np.zeros_like(x[:1]) if name in cls.item_arrays else x for name, x in arrays.items()}

    def rows(self, ids: Int[Array, "*b"] | None) -> Rows:
        """The rows of parameters and frozen arrays that `encode` needs: of `ids`, or of all items for None.

        Here those of `item_arrays`; an encoder with `item_params` adds them.
        """
        return {name: self._frozen(name, ids) for name in self.item_arrays}

    def encode(self, rows: Rows, *, train: bool = False) -> Float[Array, "*b d"]:
        """Item vectors from their rows."""
        raise NotImplementedError

    def __call__(self, ids: Int[Array, "*b"], *, train: bool = False) -> Float[Array, "*b d"]:
        """Vectors of the items asked for, in the compute dtype; ids are int32 in [0, N)."""
        return self.encode(self.rows(ids), train=train)

    def table(self, *, train: bool = False) -> Float[Array, "N d"]:
        """Vectors of all items."""
        return self.encode(self.rows(None), train=train)

    def trained(self) -> Bool[Array, "N"]:
        """Which items training sees: the frozen array of that name, one of `item_arrays`."""
        return self._frozen("trained")

    @classmethod
    def has_auxiliary(cls) -> bool:
        """Whether there are losses of its own: a step of such an encoder works on a batch as a whole."""
        return cls.auxiliary is not ItemEncoder.auxiliary

    def contextualize(
        self, inputs: Float[Array, "B L d"], layout: SequenceLayout, *, train: bool = False
    ) -> Float[Array, "B L d"]:
        """What the backbone reads of histories of item vectors; a position may use what its state may depend on."""
        return inputs

    def auxiliary(self, rows: Rows, view: StepView) -> dict[str, Float[Array, ""]]:
        """Float32 losses of a training step to add to the objective's, by name, their weights included.

        `rows` are those of the step's items. Padding of a step repeats items, and a loss over all items has the whole
        catalogue in `rows`: mean over the batch (`view`) and not over the rows.
        """
        return {}

    def diagnostics(self) -> dict[str, Array]:
        """Small arrays to watch through training, by name; under jit, at most one pass over the item parameters."""
        return {}

    def _frozen(self, name: str, ids: Int[Array, "*b"] | None = None) -> Array:
        array: Array | None = self.get_variable("frozen", name)
        if array is None:
            raise ValueError(f'The collection "frozen" of {type(self).__name__} holds no array {name!r}.')
        array = jnp.asarray(array)
        return array if ids is None else array[ids]
