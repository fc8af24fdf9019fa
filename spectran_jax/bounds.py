"""What a number may be, and how that is said."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The ends of a range: `low` and `high` belong to it, `above` and `below` do not; None is no end."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Whether `value` lies within them; NaN lies nowhere."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """What follows `--flag must`."""
        if self.low is not None and self.high is not None:
            return f"be between {self.low} and {self.high}"
        if self.above is not None and self.below is not None:
            return f"lie between {self.above} and {self.below}"
        ends = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return "be " + " and ".join(f"{words} {end}" for words, end in ends.items() if end is not None)
