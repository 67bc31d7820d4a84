"""One process is aborted once it has left the others; the main one is slow to end, with 2.

torchrun, which looks ten times a second, sees the aborted one first.
"""

import os
import sys
import time
from pathlib import Path

from eval.processes import joined

with joined() as processes:
    processes.from_main(int)
(Path(sys.argv[1]) / os.environ["RANK"]).touch()
if not processes.is_main:
    os.abort()
time.sleep(3)
sys.exit(2)
