"""TRL's RepeatSampler with an order that depends on the epoch alone, so that a resumed run sees the same rows."""

from __future__ import annotations

from collections.abc import Iterator

from trl.trainer.utils import RepeatSampler


class EpochRepeatSampler(RepeatSampler):
    """RepeatSampler whose shuffle is seeded with `seed + epoch`.

    TRL 1.16's own draws each epoch's order from one running generator: a run resumed in epoch 2 starts that generator
    anew and replays the order of epoch 1. Accelerate's loaders call `set_epoch` before every pass.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()
