"""Takes the place of scripts/reproduce/stage.py in a copy of the project: a stage leaves what it was made of."""

import argparse
import hashlib
import json
from pathlib import Path

from scripts.reproduce.settings import read_study
from scripts.reproduce.stages import stages_of

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
parser.add_argument("--rehearse", action="store_true")
parser.add_argument("stage")
own = parser.parse_args()
study = read_study(own.config, own.rehearse)
stage = stages_of(study)[own.stage]
needs = [(study.folder / file).read_text(encoding="utf-8") for file in stage.needs]
digest = hashlib.sha256(json.dumps([needs, dict(stage.depends)], default=str).encode()).hexdigest()
for file in (*stage.leaves, *stage.keeps, stage.mark):
    path = study.folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if file not in stage.keeps or not path.exists():  # a user may have changed it
        path.write_text(f"{digest}\n", encoding="utf-8")
with open(study.folder / "ran.txt", "a", encoding="utf-8") as ran:
    ran.write(f"{stage.name}\n")
