"""torchrun, with this project's exit codes and its patience.

    python -m r1_aqa_repro.launch --standalone --nproc-per-node 8 -m r1_aqa_repro.train_grpo --config FILE

The arguments are torchrun's. torchrun itself ends with 1 whatever happened; this ends with 2 if the processes
refused to start, with 3 if they finished with losses, and with 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import LAUNCHER, end_with_launcher
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOSSES, EXIT_REFUSED

# Seconds from a signal to SIGKILL. A large checkpoint takes minutes to write; torchrun's own default is 30. Where a
# process fails, torchrun gives the others 30 s regardless of this.
SHUTDOWN_TIMEOUT = 1800
# what is passed on to the processes: torchrun's own, and SIGUSR1, which schedulers send before they end a job
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def main(argv: list[str]) -> int:
    """Run torchrun in this process. Returns the exit code."""
    end_with_launcher()
    os.environ[LAUNCHER] = str(os.getpid())
    own = ["--shutdown-timeout", str(SHUTDOWN_TIMEOUT), "--signals-to-handle", SIGNALS]
    try:
        run(parse_args([*own, *argv]))
    except ChildFailedError as error:
        # if one process ends in order, all do, and the main one has said why; another may still be aborted at its
        # exit, by the connection that its peer closed
        for code in (EXIT_REFUSED, EXIT_INTERRUPTED, EXIT_LOSSES):
            if any(failure.exitcode == code for failure in error.failures.values()):
                return code
        rank, failure = error.get_first_failure()
        how = f"signal {failure.signal_name()}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        say(f"error: process {rank} failed ({how}) and the others were stopped; what it said stands above")
        return EXIT_FAILED
    except (SignalException, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
