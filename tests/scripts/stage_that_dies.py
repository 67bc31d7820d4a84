"""Takes the place of scripts/reproduce/stage.py: a stage that is killed, with all that runs beside it, amid its work.

A stage that the file named by TO_DIE lists takes itself from it, and SIGKILL comes as it is about to put a file in its
place.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from scripts.reproduce import stage

# how the path of that file ends, by kind of stage; of others it is the mark that they are done
AMID = {
    "embedded": "/mmau_format.json",  # without the questions to learn from
    "model": "/checkpoint-2",
    "train_data": "/held_out.jsonl",
    "train": "/checkpoint-2",
    "choose": "/checkpoint-2/predictions.jsonl",
    "base": "/test-no-audio/predictions.jsonl",
    "test": "/test-permuted/predictions.jsonl",
    "matrix": "/test-think-greedy/predictions.jsonl",
    "report": "/bundle.json",
}
name = sys.argv[-1]
amid = AMID.get(name.partition("/")[0], f"/done/{name}.json")


def die(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.rename" and os.fspath(arguments[1]).endswith(amid):
        to_die = Path(os.environ["TO_DIE"])
        left = to_die.read_text(encoding="utf-8").split()
        if name in left:
            to_die.write_text("\n".join(one for one in left if one != name), encoding="utf-8")
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.addaudithook(die)
    stage.main()
