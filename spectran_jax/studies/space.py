"""What a search may change: ranges of configuration fields, points among them, and the space of each method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectran_jax.config import Config, fields
from spectran_jax.errors import InputError, unknown_name
from spectran_jax.studies.reads import unread_because

DIMENSIONS = 16
"""Of the Sobol sequence, of which a space takes the first."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a search may give to one configuration field."""

    name: str
    low: float
    high: float
    log: bool
    whole: bool = False
    """Whether only whole numbers are tried."""

    def at(self, point: float) -> float:
        """The value at a point in [0, 1], uniform or log-uniform; three significant digits, or whole."""
        if self.whole and not self.log:
            return min(int(self.low + point * (self.high + 1 - self.low)), int(self.high))  # each as likely
        if self.log:
            value = math.exp(math.log(self.low) + point * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + point * (self.high - self.low)
        # Rounding must not lead out of the range.
        value = min(max(float(f"{value:.3g}"), self.low), self.high)
        return min(max(round(value), math.ceil(self.low)), math.floor(self.high)) if self.whole else value


def parse_space(text: str) -> list[Range]:
    """Reads `learning_rate=log:3e-4:3e-3,dropout=0.1:0.5`; fields of whole numbers are given whole numbers.

    Raises:
      InputError: for an unknown field, one that is no number or stands twice, or a malformed range.
    """
    kinds: dict[str, type] = {field.name: type(field.default) for _, field in fields()}
    space: list[Range] = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, values = part.partition("=")
        if name not in kinds:
            raise unknown_name("field in --search:", name, [n for n, k in kinds.items() if k in (float, int)])
        if kinds[name] not in (float, int):
            raise InputError(f"--search={part}: only numbers are searched; {name} is {kinds[name].__name__}.")
        bounds = values.split(":")
        log, whole = bounds[0] == "log", kinds[name] is int
        try:
            low, high = ((int if whole else float)(v) for v in bounds[log:])
            finite = math.isfinite(low) and math.isfinite(high)
        except (ValueError, OverflowError):  # a whole number may have hundreds of digits
            numbers = ", whole numbers" if whole else ""
            raise InputError(f"--search={part}: write NAME=LOW:HIGH or NAME=log:LOW:HIGH{numbers}.") from None
        if not (finite and low <= high) or (log and low <= 0):
            raise InputError(f"--search={part}: LOW must not be above HIGH, both finite, and above 0 where log.")
        if name in {r.name for r in space}:
            raise InputError(f"--search names {name} twice; give each field one range.")
        space.append(Range(name, low, high, log, whole))
    return space


def design(space: Sequence[Range], points: int, seed: int) -> list[dict[str, float]]:
    """The points' values: a scrambled Sobol sequence (SciPy), so that few points cover the space evenly.

    It depends on the places of the fields in the space and the seed alone: spaces that begin with the same fields are
    given the same values of them, whatever follows, and more points begin with those of fewer.
    """
    from scipy.stats import qmc

    # Scrambling depends on the number of dimensions, so it is the same for all spaces.
    sampler = qmc.Sobol(max(DIMENSIONS, len(space)), scramble=True, rng=np.random.default_rng(seed))
    drawn = sampler.random(1 << max(0, points - 1).bit_length())[:points]
    return [{r.name: r.at(p) for r, p in zip(space, point, strict=False)} for point in drawn.tolist()]


COMMON = "learning_rate=log:5e-4:4e-3,dropout=0.1:0.5,weight_decay=log:1e-4:0.3,temperature=log:0.05:0.2"
"""What every method is searched over. The best temperature is not the same for all (RESULTS.md, "The temperature")."""

SEMANTIC = "semantic_scale=log:0.04:0.5"
"""How much the text counts against the IDs: of every method whose item vectors hold text."""

OWN: dict[str, str] = {
    "id": "id_scale=log:0.01:0.2",
    "svd": "spectral_power=0:1",
    "llminit": "spectral_power=0:1",
    "mlp": "adapter_width=log:64:512,adapter_lr_multiplier=log:0.3:3",
    "moe": "experts=log:2:16,adapter_lr_multiplier=log:0.3:3",
    "whiten": "adapter_width=log:64:512,whiten_groups=log:1:16,adapter_lr_multiplier=log:0.3:3",
    "alphafuse": "null_share=0.2:0.8",
    "rlmrec": "id_scale=log:0.01:0.2,alignment_weight=log:1e-3:1,alignment_temperature=log:0.05:0.5,"
    "adapter_lr_multiplier=log:0.3:3",
    "llmesr": "spectral_power=0:1,alignment_weight=log:1e-3:1,adapter_lr_multiplier=log:0.3:3",
    "spectran": "spectral_power=0:1,spectral_lr_multiplier=log:1:10",
}
"""Fields of each method's own, those that methods share first; a method that is not named here has none."""


def space_of(item_encoder: str, given: Sequence[str] = (), config: Config | None = None) -> list[Range]:
    """The search space of a method: the common fields, the scale of the text where it has any, and its own.

    Every method is given the same number of trials, at the same values of the common fields.

    Args:
      item_encoder: its name in the registry.
      given: fields that somebody has fixed; they are not searched.
      config: the values that are not searched, the defaults if None; nor are fields that nothing reads with them.

    Raises:
      InputError: for an unknown item encoder.
    """
    from spectran_jax import item_encoders

    encoder = item_encoders.lookup(item_encoder)
    semantic = SEMANTIC if encoder.needs_spectrum or encoder.needs_text else ""
    parts = [part for text in (COMMON, semantic, OWN.get(item_encoder, "")) for part in text.split(",") if part]
    ranges = parse_space(",".join(part for part in parts if part.split("=")[0] not in given))
    somewhere = at_the_top(ranges, (config or Config()).replace(item_encoder=item_encoder))
    return [field for field in ranges if not unread_because(somewhere, field.name)]


def at_the_top(space: Sequence[Range], config: Config) -> Config:
    """The configuration with every range at its upper end: where one field switches another off, it is on."""
    return config.replace(**{field.name: field.high for field in space})


def describe(values: dict[str, Any]) -> str:
    """`dropout 0.3, learning_rate 0.001`: values of fields for people."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
