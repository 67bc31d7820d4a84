"""Carry out one stage of a reproduction, as Snakemake does for each: what it leaves, and its mark at the end.

    python -m scripts.reproduce.stage --config configs/reproduce_r1_aqa.yaml [--rehearse] train/grpo/seed-42

What a stage says goes to logs/STAGE.txt in the study's folder. It goes on where it was stopped. If what it depends on
has changed in the meantime, what it had made is put aside, into superseded/, and it begins anew.
"""

from __future__ import annotations

import importlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from eval.reproduction import reading
from r1_aqa_repro.common.claim import differences, read_claim
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Failed, Refused, command
from r1_aqa_repro.common.files import read_json, sha256_of, sole_use, write_json
from r1_aqa_repro.common.stopwatch import Stages
from r1_aqa_repro.data.prompts import PROMPT_STYLES, prompt_text
from r1_aqa_repro.data.questions import read_questions, write_manifest
from scripts.launching import end_of, launched, send_to_log, tell
from scripts.reproduce import stages
from scripts.reproduce.cost import EnergyMeter, note, peak_of
from scripts.reproduce.settings import Arm, Study, read_study
from scripts.reproduce.stages import HELD_OUT, TEST, TRAIN, Stage, stages_of
from scripts.reproduce.workflow import CLAIMS, lock_of, put_aside

LOGS, SECONDS = "logs", "seconds"
QUESTIONS_A_VIDEO = 4  # of the embedded training set, so that there is something to hold out by
_REMEDY = "Delete it; the stage begins anew."


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = Options(__doc__, "python -m scripts.reproduce.stage")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("stage", metavar="STAGE")
    own = parser.parse_args(argv)
    study = read_study(own.config, own.rehearse)
    known = stages_of(study)
    if own.stage not in known:
        raise Refused.because(own.stage, "there is no such stage", f"Choose among {', '.join(known)}.")
    stage = known[own.stage]
    log = study.folder / LOGS / f"{stage.rule}.txt"
    terminal = send_to_log(log)
    began = time.perf_counter()
    with sole_use(lock_of(study, stage), "Another process is at this stage: wait for it."):
        tell(terminal, f"{stage.name} ...")
        try:
            with Stages(study.folder / SECONDS / f"{stage.rule}.json")(stage.name):
                begin(study, stage)
                found = Work(study, stage).carry_out()
        except BaseException as error:
            _tell_end(terminal, stage.name, log, error)
            raise
        write_json(study.folder / stage.mark, found)
    tell(terminal, f"{stage.name}: {time.perf_counter() - began:.0f} s")
    return EXIT_DONE


def begin(study: Study, stage: Stage) -> None:
    """Make what the stage works in its own; what was made of something else is put aside."""
    made_of = {
        "needs": {str(file): sha256_of(study.folder / file) for file in stage.needs},
        "depends": json.loads(json.dumps(dict(stage.depends), default=str)),
    }
    claim = study.folder / CLAIMS / f"{stage.rule}.json"
    if (before := read_claim(claim, _REMEDY)) is not None and before != made_of:
        changed = [one for part in ("depends", "needs") for one in differences(before[part], made_of[part])]
        if (aside := put_aside(study, stage)) is not None:
            say(f"what was made before is in {aside}: {'; '.join(changed)}")
        claim.unlink()
    if not claim.is_file():
        write_json(claim, made_of)


class Work:
    """What the stages do.

    Raises:
        Refused, Failed: a command has refused or failed, and its log says why.
    """

    def __init__(self, study: Study, stage: Stage):
        self.study, self.stage, self.keys = study, stage, study.keys
        self.folder = study.folder / stage.own[0] if stage.own else study.folder

    def carry_out(self) -> dict[str, Any]:
        """Do the work of the stage.

        Returns:
            The content of its mark: digests of what came out, by which those that need it know it unchanged.
        """
        what, *rest = self.stage.name.split("/")
        if what in ("train", "choose", "test"):
            arm, seed = self.study.arms[rest[0]], int(rest[1].removeprefix("seed-"))
            return getattr(self, f"_{what}")(arm, seed)
        if what == "prepare":
            return self._prepare(rest[0])
        return getattr(self, f"_{what}")()

    # --- Data and model

    def _prepare(self, command: str) -> dict[str, Any]:
        options = str(self.keys.prepare[command])
        self._run(f"data_prep.{command}", shlex.split(options))
        return _digests(stages.prepared(options))

    def _embedded(self) -> dict[str, Any]:
        from r1_aqa_repro.embedded.question_set import write_question_set

        embedded, made = self._made(), self.study.made
        number = embedded.num_warm + embedded.num_train
        write_question_set(made, seed=embedded.seed, num_train=number, num_held_out=embedded.num_test)
        questions = read_questions(made / "train" / "manifest.jsonl").records
        warm, train = questions[: embedded.num_warm], questions[embedded.num_warm :]
        videos = [replace(one, source_video=f"video-{index // QUESTIONS_A_VIDEO}") for index, one in enumerate(train)]
        write_manifest(made / stages.WARM, warm)
        write_manifest(self.study.train_file, videos)
        return _digests(made / stages.WARM, self.study.train_file, self.study.test_file)

    def _model(self) -> dict[str, Any]:
        from eval.checkpoints import local_folder
        from r1_aqa_repro.model.files import model_digest

        if self.study.embedded is None:
            return {"model": self.study.model, "sha256": model_digest(local_folder(self.study.model))}
        from r1_aqa_repro.embedded.tiny_model import build_tiny_qwen2_audio

        embedded, start, warm = self._made(), self.folder / "start", self.study.made / stages.WARM
        if not start.is_dir():
            asked = read_questions(warm).records
            build_tiny_qwen2_audio(
                start, texts=[prompt_text(one, style) for one in asked for style in PROMPT_STYLES], seed=embedded.seed
            )
        self._run(
            "r1_aqa_repro.train_sft",
            [
                *("--config", str(embedded.warm_file), "--model_name_or_path", str(start), "--train_file", str(warm)),
                *("--output_dir", str(self.folder / "warm_start"), "--seed", str(embedded.seed)),
                *("--prompt_style", self.keys.base["prompt_style"], "--max_steps", str(embedded.warm_steps)),
            ],
        )
        return {"sha256": model_digest(self.study.model)}

    def _train_data(self) -> dict[str, Any]:
        split = ["--held-out", str(self.keys.held_out), "--by", "video", "--seed", str(self.keys.held_out_seed)]
        self._run("data_prep.split", [str(self.study.train_file), *split, "--out", str(self.study.folder / "data")])
        return _digests(*(self.study.folder / file for file in (TRAIN, HELD_OUT)))

    def _test_data(self) -> dict[str, Any]:
        read = read_questions(self.study.test_file)
        if read.problems:
            raise Refused(read.problems)
        write_manifest(self.study.folder / TEST, read.records)
        return _digests(self.study.folder / TEST)

    def _overlap(self) -> dict[str, Any]:
        train, test = (str(self.study.folder / file) for file in (TRAIN, TEST))
        self._run("data_prep.overlap", ["--train", train, "--test", test, "--out", str(self.folder)])
        return _digests(self.folder)

    # --- Arms

    def _train(self, arm: Arm, seed: int) -> dict[str, Any]:
        from r1_aqa_repro.model.files import model_digest
        from r1_aqa_repro.run.checkpoints import checkpoints
        from r1_aqa_repro.run.training_state import delete_training_state

        argv = ["--config", str(arm.file), "--model_name_or_path", self.study.model, "--seed", str(seed)]
        argv += ["--data_seed", str(seed), "--train_file", str(self.study.folder / TRAIN)]
        argv += ["--output_dir", str(self.folder), *arm.overrides()]
        with EnergyMeter(self.folder.parent / reading.COST):
            self._run(f"r1_aqa_repro.train_{arm.kind}", argv, arm.processes)
        for checkpoint in checkpoints(self.folder):  # the run is over, and the state is most of what it takes
            delete_training_state(checkpoint)
        self._note_utilisation(arm)
        return {"sha256": model_digest(self.folder / "final")}

    def _note_utilisation(self, arm: Arm) -> None:
        """Note the MFU: the FLOPs of the planner's step (docs/planning.md) over what GPUs of a known kind could do."""
        from trl import get_peft_config

        from r1_aqa_repro.planning.estimate import strategies
        from r1_aqa_repro.planning.job import make_job, model_config
        from r1_aqa_repro.run.checkpoints import last_checkpoint
        from r1_aqa_repro.run.folder import recorded
        from scripts.reproduce.check import read_training

        record, last = recorded(self.folder), last_checkpoint(self.folder)
        peak = peak_of(record["hardware"]["gpus"][: arm.processes])
        if peak is None or last is None:
            return
        training, model = read_training(self.study, arm, [])
        job = make_job(training, model, model_config(self.study.model)[0], arm.processes, None, None, None)
        flops = sum(strategies(job, [get_peft_config(model)], ["ddp"])[0].work.flops.values()) * arm.processes
        steps, seconds = int(last.name.rpartition("-")[2]), sum(record["seconds"].values())
        note(self.folder.parent / reading.COST, mfu=flops * steps / seconds / peak)

    def _choose(self, arm: Arm, seed: int) -> dict[str, Any]:
        found = self._sweep(arm, seed, self.study.folder / HELD_OUT, self.folder)
        best = next(point for point in found["points"] if point["name"] == found["best"])
        chosen = {"checkpoint": best["name"], "step": best["step"], "held_out": best["total"]["accuracy"]}
        file = self.study.of(arm.name, seed) / reading.CHOSEN
        write_json(file, chosen)
        return chosen | _digests(file)

    def _test(self, arm: Arm, seed: int) -> dict[str, Any]:
        place = self.study.of(arm.name, seed)
        found = self._asked_and_controlled(self._chosen(arm, seed), place, arm.prompt_style)
        if arm.published is not None:
            self._sweep(arm, seed, self.study.folder / TEST, place / reading.ON_TEST)
            found["files"] |= _digests(place / reading.ON_TEST / "sweep.json")["files"]
        return found

    def _chosen(self, arm: Arm, seed: int) -> Path:
        place = self.study.of(arm.name, seed)
        return place / "run" / str(read_json(place / reading.CHOSEN, _REMEDY)["checkpoint"])

    # --- Evaluations

    def _base(self) -> dict[str, Any]:
        place, style = self.study.folder / reading.BASE, self.keys.base["prompt_style"]
        return self._asked_and_controlled(self.study.model, place, style)

    def _asked_and_controlled(self, model: Path | str, place: Path, style: str) -> dict[str, Any]:
        """The evaluations of a model on the test set, in `CONTROLS` below its folder."""
        permuted = ["--permute-choices", str(self.keys.orders)]
        for name, more in zip(stages.CONTROLS, ([], ["--no-audio"], permuted), strict=True):
            self._evaluate(model, self.study.folder / TEST, place / name, style, more)
        return _digests(*(place / name / "predictions.jsonl" for name in stages.CONTROLS))

    def _matrix(self) -> dict[str, Any]:
        files = []
        for place, style, decoding in stages.asked_otherwise(self.study):
            main = self.study.main()
            model = self.study.model if place == Path(reading.BASE) else self._chosen(main, self.keys.seeds[0])
            out = self.study.folder / stages.asked_in(place, style, decoding)
            self._evaluate(model, self.study.folder / TEST, out, style, ["--decoding", decoding])
            files.append(out / "predictions.jsonl")
        return _digests(*files)

    def _suite(self) -> dict[str, Any]:
        main = self.study.main()
        held_out = {
            seed: read_json(self.study.of(main.name, seed) / reading.CHOSEN, _REMEDY) for seed in self.keys.seeds
        }
        best = max(held_out, key=lambda seed: held_out[seed]["held_out"])
        argv = ["--config", str(self.keys.suite), "--ckpt", str(self._chosen(main, best))]
        argv += ["--before", self.study.model, "--out", str(self.folder)]
        self._run("eval.suite", argv, self.stage.processes)
        return {"seed": best} | _digests(self.folder / "suite.json")

    def _evaluate(self, model: Path | str, data: Path, out: Path, style: str, more: Sequence[str]) -> None:
        argv = ["--ckpt", str(model), "--data", str(data), "--out", str(out), "--prompt-style", style, *self._asked()]
        given = [] if "--decoding" in more else ["--decoding", self.keys.decoding]
        self._run("eval.mmau", [*argv, *given, *more], self.stage.processes)

    def _sweep(self, arm: Arm, seed: int, data: Path, out: Path) -> dict[str, Any]:
        argv = [str(self.study.of(arm.name, seed) / "run"), "--data", str(data), "--out", str(out)]
        argv += ["--prompt-style", arm.prompt_style, *self._asked()]
        self._run("eval.sweep", argv, self.stage.processes)
        return read_json(out / "sweep.json", _REMEDY)

    def _asked(self) -> list[str]:
        keys = self.keys
        asked = ["--max-new-tokens", str(keys.max_new_tokens), "--batch-size", str(keys.batch_size)]
        return [*asked, "--dtype", keys.dtype, *(["--device", "cpu"] if self.study.embedded else [])]

    # --- Report

    def _report(self) -> dict[str, Any]:
        from eval.reproduction import bundle, report

        write_json(self.study.folder / "study.json", self.study.description())
        made = bundle.collect(self.study.folder)
        bundle.seal(made)
        report.write(self.study.folder)
        return _digests(made / "figures.json", made / "bundle.json")

    # --- Commands

    def _made(self) -> Any:
        assert self.study.embedded is not None, "only a rehearsal makes its data"
        return self.study.embedded

    def _run(self, module: str, argv: Sequence[str], processes: int = 1) -> None:
        """Run a command of the project, here or in several processes.

        Raises:
            Failed: it did not end well; an evaluation may end with losses, which its report counts.
        """
        say(f"+ python -m {module} {shlex.join(argv)}" + (f"   in {processes} processes" if processes > 1 else ""))
        code = launched(module, argv, processes) if processes > 1 else importlib.import_module(module).main([*argv])
        if code not in (EXIT_DONE, EXIT_LOSSES):
            raise Failed(f"{module} has ended with exit code {code}; what it said stands above")


def _digests(*files: Path) -> dict[str, Any]:
    return {"files": {f"{file.parent.name}/{file.name}": sha256_of(file) for file in files}}


def _tell_end(terminal: TextIO, name: str, log: Path, error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt):
        tell(terminal, f"{name}: interrupted; what is done is kept")
        return
    tell(terminal, f"{name}: failed ({error}). The end of {log}:\n" + "\n".join(f"    {line}" for line in end_of(log)))


if __name__ == "__main__":
    main()
