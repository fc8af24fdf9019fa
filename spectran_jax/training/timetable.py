"""What happens after which step: validations, checkpoints, lines of the log."""

from __future__ import annotations

import dataclasses

from spectran_jax.config import Config, TrainingConfig

LOG_EVERY = 50
"""Steps between two training lines of metrics.jsonl."""


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Updates until `--epochs` or `--max_steps`, whichever comes first."""
    steps = config.training.epochs * steps_per_epoch
    return min(steps, config.training.max_steps) if config.training.max_steps else steps


@dataclasses.dataclass(frozen=True)
class Timetable:
    """What happens after which step."""

    total: int
    per_epoch: int
    training: TrainingConfig

    def validates(self, step: int) -> bool:
        """Whether the validation set is evaluated after this step."""
        return step == self.total or self.regular(step)

    def regular(self, step: int) -> bool:
        """Whether it is evaluated after this step wherever the run ends."""
        return step % self.per_epoch == 0 and step // self.per_epoch % self.training.eval_every == 0

    def saves(self, step: int) -> bool:
        """Whether the state is saved after this step."""
        return self.validates(step) or step % self.training.checkpoint_every == 0

    def logs(self, step: int) -> bool:
        """Whether a training line is written after this step."""
        return self.validates(step) or step % LOG_EVERY == 0

    def steps_at(self, step: int) -> int:
        """Updates of the dispatch after `step`: `--steps_per_dispatch`, halved until nothing is due in between, so that
        few programs are compiled; at the end of the run, what is left.
        """
        size = min(self.training.steps_per_dispatch, self.total - step)
        while size > 1 and any(self.saves(at) or self.logs(at) for at in range(step + 1, step + size)):
            size //= 2
        return size
