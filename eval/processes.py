"""Several processes that share one evaluation: who they are, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from r1_aqa_repro.common.distributed import end_distributed, num_processes, rank
from r1_aqa_repro.common.errors import Failed, Refused

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # until another process is taken for lost: one may have far longer clips than the others


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work; alone unless told otherwise.

    They exchange a few small values through their process group. What ends one with an error that the main process has
    to report ends all.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def on_main(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on the main process; None on the others, which wait for it.

        Raises:
            Refused, Failed: the work has raised it; on every process.
        """
        return self.together(work if self.is_main else lambda: None)

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` gives on the main process, everywhere; it has to be picklable.

        Raises:
            Refused, Failed: the work has raised it; on every process.
        """
        return self._gather(work if self.is_main else lambda: None, share=True)[0]

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives on this process, once it is done on every one.

        Raises:
            Refused, Failed: it has raised it on any process; on every one.
        """
        return self._gather(work)[self.rank]

    def _gather(self, work: Callable[[], Any], share: bool = False) -> list[Any]:
        """Run the work here; what it gave here, or (with `share`) everywhere, by rank."""
        if self.count == 1:
            return [work()]
        import torch.distributed

        result, raised = None, None
        try:
            result = work()
        except (Refused, Failed) as error:
            # neither can be pickled as it is: what they are made of can
            raised = error.problems if isinstance(error, Refused) else str(error)
        reports: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(reports, (result if share else None, raised))
        for _, wrong in reports:
            if wrong is not None:
                raise Failed(wrong) if isinstance(wrong, str) else Refused(wrong)
        return [report[0] if share else result for report in reports]


ALONE = Processes()


def of_this_run() -> Processes:
    """The processes that torchrun started together with this one, whose process group is open."""
    return Processes(rank(), num_processes())


@contextmanager
def joined() -> Iterator[Processes]:
    """Those of this run, in a process group of their own while the context lasts: gloo, on CPUs and GPUs alike."""
    processes = of_this_run()
    if processes.count == 1:
        yield processes
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield processes
    finally:
        end_distributed()
