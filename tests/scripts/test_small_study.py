"""What a study counts and says: orders, equal FLOPs, pooled figures. The whole of it runs in slow/."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile
import yaml

from eval.matcher import MATCHERS
from eval.predictions import predict
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import write_lines
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from scripts.small_study import CONFIG, check, main
from scripts.study.figures import accuracy, blind_check, by_family, difference, read_answers
from scripts.study.flops import Meter, Spent, between, steps_for
from scripts.study.report import sentences, tables, write_report
from scripts.study.seed import MODELS, Study, make_questions, read_all, signal_first
from scripts.study.settings import in_words_of_the_study, read_settings
from tests.conftest import ROOT

QUESTION = AudioQuestion("q", Path("clip.wav"), "Which?", ("a", "b"), "a", source_video="recording")


# --- Settings


@pytest.mark.parametrize("size", ["small", "quick"])
def test_the_shipped_settings_are_sound(size: str) -> None:
    settings = read_settings(CONFIG, size)
    for config in (settings.align, settings.sft, settings.grpo, settings.grpo_think):
        assert (ROOT / "configs" / f"{config}.yaml").is_file()


def test_everything_wrong_with_a_file_is_named_at_once(tmp_path: Path) -> None:
    content = yaml.safe_load(CONFIG.read_text())
    content |= {"family": ["digit"], "choices": "four", "window_seconds": 2, "arms": {"ppo": {}}}
    del content["hold_out"], content["quick"]["grpo_steps"]
    content["small"]["orders"] = 0
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(Refused) as refusal:
        read_settings(file, "small")
    said = str(refusal.value)
    for part in (
        "no key family",
        "choices is 'four'",
        "hold_out is absent",
        "quick: grpo_steps is absent",
        "orders is 0",
    ):
        assert part in said


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load(CONFIG.read_text())
    content |= {"seconds": 3, "window_seconds": 2, "arms": {"ppo": {}}, "hold_out": 1, "labels": {"digit": "one"}}
    content |= {"families": [], "choices": 9, "held_out_sources": ["=home", "instrument=", "home"]}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(Refused) as refusal:
        read_settings(file, "small")
    said = str(refusal.value)
    for part in (
        "window_seconds: clips of 3 s do not fit",
        "arms.ppo",
        "hold_out: 1",
        "labels.digit",
        "families: there is none",
        "choices: 9. Give a number from 2 to 8",
        "held_out_sources: '=home' is no source",
        "held_out_sources: 'instrument=' is no source",
    ):
        assert part in said
    assert "'home' is no source" not in said


def test_labels_that_yaml_takes_for_something_else_belong_in_quotes(tmp_path: Path) -> None:
    file, text = tmp_path / "study.yaml", CONFIG.read_text(encoding="utf-8")
    start, end = text.index("  language: ["), text.index("min_recordings")
    for labels in ("[yes, no]", "[1, 2]", "['yes', 'no', '1']"):
        file.write_text(f"{text[:start]}  word: {labels}\n{text[end:]}", encoding="utf-8")
        if "'" in labels:
            assert read_settings(file, "small").labels == {"word": ["yes", "no", "1"]}
        else:
            with pytest.raises(
                Refused, match=r"labels\.word: \[(True|1), .* in quotes where YAML reads something else"
            ):
                read_settings(file, "small")


def test_what_questions_cannot_be_made_of_is_told_by_the_keys_of_the_file() -> None:
    with pytest.raises(Refused) as refusal, in_words_of_the_study(Path("my.yaml")):
        raise Refused(
            [
                Problem("--labels word", "no clip is labelled 'x'", "Its labels are y, z."),
                Problem("--hold-out-source home", "no clip is of it", "The sources are a--labels."),
                Problem("family word", "too few", "Give a smaller --min-recordings or --choices, or more clips."),
                Problem("clips.csv", "--labels", "Give the collection's --preset."),
                Problem("--window-seconds", "9 s are more than 8", "Give at most 8."),
            ]
        )
    assert str(refusal.value).splitlines() == [
        "my.yaml: labels word: no clip is labelled 'x'. Its labels are y, z.",
        "my.yaml: held_out_sources home: no clip is of it. The sources are a--labels.",
        "family word: too few. Give a smaller min_recordings or choices, or more clips.",
        "clips.csv: --labels. Give the collection's --preset.",
        "my.yaml: window_seconds: 9 s are more than 8. Give at most 8.",
    ]


def test_a_key_of_an_arm_that_no_training_has_is_named_with_its_arm(tmp_path: Path) -> None:
    own = Namespace(preset="gtzan", data=None, audio=tmp_path, config=Path("my.yaml"), output_dir=tmp_path / "out")
    settings = replace(read_settings(CONFIG, "small"), arms={"grpo": {"learning_rat": 1}})
    with pytest.raises(Refused) as refusal:
        check(own, settings)
    assert [one.where.split(",")[0] for one in refusal.value.problems] == ["my.yaml: arms.grpo"]
    assert "learning_rat" in str(refusal.value)


def test_keys_of_an_arm_are_arguments_of_its_training() -> None:
    settings = replace(read_settings(CONFIG, "small"), arms={"grpo": {"learning_rate": 1e-05, "sharing": False}})
    assert settings.overrides("grpo", max_steps=7) == [
        "--learning_rate",
        "1e-05",
        "--sharing",
        "false",
        "--max_steps",
        "7",
    ]
    assert settings.overrides("sft") == []


# --- Questions


def test_questions_with_signal_come_first_in_the_order_in_which_they_were_drawn() -> None:
    rates = {"always": 1.0, "never": 0.0, "half": 0.5, "often": 0.75, "seldom": 0.25, "always too": 1.0}
    ordered = signal_first([replace(QUESTION, id=name) for name in rates], rates)
    assert [one.id for one in ordered] == ["half", "often", "seldom", "never", "always", "always too"]


def test_each_part_of_the_recordings_is_asked_about_and_what_is_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    """Names with commas reach the command as they are."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = ["path,label,family,recording"]
    for label in ("low, deep", "high"):
        for number in range(12):
            name = f"{label[:3]}{number}.wav"
            noise = np.random.default_rng(len(rows)).standard_normal(4_000)
            soundfile.write(folder / name, 0.1 * noise, 16_000)
            rows.append(f'{name},"{label}",pitch,{name}')
    table = tmp_path / "clips.csv"
    table.write_text("\n".join(rows))
    settings = replace(
        read_settings(CONFIG, "quick"), families=["pitch"], labels={"pitch": ["low, deep", "high"]}, choices=2,
        seconds=0.25, hold_out=0.5, held_out_sources=[],
    )  # fmt: skip
    study = Study(tmp_path / "study", settings, table, folder, None, "report", "float32")
    stages = []

    def run_apart(stage: str, entry: Any, argv: list[str]) -> None:
        assert entry.main([*argv, "--workers", "1"]) == 0
        stages.append(stage)

    workshop: Any = SimpleNamespace(seed=1, run_apart=run_apart)
    for _ in range(2):
        manifests = make_questions(study, workshop)
    assert stages == ["questions"]
    made = {path.parent.name for path in (tmp_path / "study/seed-1/questions").glob("*/audio")}
    assert made == {"warm_start", "arms", "report", "tune"}
    heard, unheard = read_all(manifests.warm), read_all(manifests.warm_start)[settings.size.per_family :]
    assert [one.answer for one in unheard] == [one.answer for one in heard[: settings.size.unheard_per_family]]
    for one in unheard:
        wave, rate = soundfile.read(one.audio_path)
        assert not wave.any() and len(wave) == 4_000 and rate == 16_000
    assert {one.split for one in read_all(manifests.held_out)} == {"report"}
    assert {choice for one in read_all(manifests.pool) for choice in one.choices} == {"low, deep", "high"}


# --- FLOPs


def test_what_a_run_did_follows_from_its_log() -> None:
    """Two steps of 2 prompts. The first takes 2 s for its 2 prompts and 24 tokens; the second asks 3 further prompts:
    5 in half a second, with 50 tokens. The last row is the run's summary."""
    log = pandas.DataFrame(
        {
            "clips_per_second": [1.0, 10.0, None],
            "tokens_per_second": [12.0, 100.0, None],
            "dynamic_sampling/drawn": [0.0, 3.0, None],
            "train_runtime": [None, None, 2.5],
        }
    )
    assert Spent.of_log(log, prompts_per_step=2) == Spent(prompts=7, tokens=24 + 50, steps=2)
    without = log.drop(columns="dynamic_sampling/drawn")
    assert Spent.of_log(without, prompts_per_step=2) == Spent(prompts=4, tokens=24 + 20, steps=2)


def test_a_length_between_two_whole_ones_lies_on_the_line() -> None:
    assert between(lambda tokens: {"a": 10.0 * tokens, "b": 5.0}, 2.25) == {"a": 22.5, "b": 5.0}
    assert between(lambda tokens: {"a": 10.0 * tokens}, 3.0) == {"a": 30.0}


@pytest.mark.parametrize(
    ("budget", "steps"), [(0.0, 1), (4.0, 1), (10.0, 1), (13.9, 1), (14.1, 2), (98.0, 12), (101.9, 12), (102.1, 13)]
)
def test_as_many_steps_as_come_nearest_to_the_budget(budget: float, steps: int) -> None:
    """8 a step and 2 beside them: 12 steps take 98, and 13 take 106."""
    assert steps_for(budget, lambda count: 8.0 * count + 2) == steps


SFT = {
    "output_dir": "out",
    "prompt_style": "answer",
    "trained_parts": "no_encoder",
    "examples_per_step": 2,
    "bf16": False,
}
GRPO = {"output_dir": "out", "prompt_style": "answer", "trained_parts": "no_encoder", "prompts_per_step": 2,
        "max_prompts_per_device": 2, "num_generations": 2, "max_completion_length": 8, "bf16": False}  # fmt: skip


def _argv(file: Path, content: dict[str, Any]) -> list[str]:
    file.write_text(yaml.safe_dump(content))
    return ["--config", str(file)]


def test_flops_grow_with_what_a_run_did(model_folder: Path, questions: list[AudioQuestion], tmp_path: Path) -> None:
    """Each further step, prompt and token takes as much as the one before; a clip is encoded once."""
    meter = Meter(model_folder, questions[:4], seconds=1.0)
    sft = meter.sft(_argv(tmp_path / "sft.yaml", SFT))
    a_step = sft(4) - sft(3)  # all four clips are known after two steps
    assert sft(2) - sft(1) > a_step > 0
    two_clips = sft(2) - sft(1) - a_step
    assert sft(7) == pytest.approx(7 * a_step + 2 * two_clips)

    argv = _argv(tmp_path / "grpo.yaml", GRPO)

    def grpo(steps: int, drawn: int, tokens_a_prompt: float) -> float:
        rates = {"clips_per_second": [1.0] * steps, "tokens_per_second": [tokens_a_prompt] * steps}
        return meter.grpo(argv, pandas.DataFrame(rates | {"dynamic_sampling/drawn": [float(drawn)] * steps}))

    two = grpo(2, 0, 6.0)
    assert grpo(4, 0, 6.0) == pytest.approx(2 * two - 2 * two_clips)
    assert 0 < grpo(2, 2, 6.0) - two < two / 2  # two more prompts a step are answered, but not learned from
    shorter, longer = grpo(2, 0, 5.0), grpo(2, 0, 7.0)
    assert longer > two > shorter


def test_a_completion_may_hold_what_ends_lines_elsewhere(
    model_folder: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    """The shorter of two completions is a line separator, U+2028, which JSON takes as it is."""
    meter = Meter(model_folder, questions[:2], seconds=1.0)
    argv, file = _argv(tmp_path / "grpo.yaml", GRPO), tmp_path / "predictions.jsonl"

    def answering(*completions: str | None) -> float:
        said = [predict(one, text, "answer", "") for one, text in zip(questions, completions, strict=False)]
        write_lines(file, [one.to_record() for one in said])
        return meter.answering(argv, 3, file)

    assert answering("\u2028", "low low low low") > answering("\u2028", "low") > 0


# --- Figures


def verdicts(*rows: tuple[int, str, str, str, float]) -> pandas.DataFrame:
    named = pandas.DataFrame(rows, columns=["seed", "id", "family", "recording", "right"])
    return named.assign(chance=0.25, permuted=float("nan"))


START = verdicts(
    (1, "a", "digit", "one", 0.0),
    (1, "b", "digit", "two", 1.0),
    (2, "a", "digit", "one", 0.0),
    (2, "b", "kind", "three", 1.0),
)
AFTER = START.assign(right=[1.0, 1.0, 1.0, 0.0])


def test_two_clips_of_a_recording_are_one_for_the_intervals(tmp_path: Path) -> None:
    channels = [replace(QUESTION, id=name, audio_path=tmp_path / f"{name}.wav") for name in ("left", "right")]
    write_manifest(tmp_path / "manifest.jsonl", [*channels, replace(QUESTION, id="other", source_video="another")])
    right = {"left": [True, False], "right": [False, True], "other": [True, True]}  # in two orders of the choices
    lines = [{"id": name, **dict.fromkeys(MATCHERS, one)} for name, orders in right.items() for one in orders]
    (tmp_path / "verdicts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "scores.json").write_text(json.dumps({"n": 3, "asked": 6, "missing": 0, "format_rate": 0.5}))
    answers = read_answers({seed: (tmp_path / "manifest.jsonl", tmp_path) for seed in (1, 2)})
    assert answers.format_rate == 0.5 and answers.verdicts["permuted"].tolist() == [0, 1, 1] * 2
    block = accuracy(answers.verdicts)
    assert answers.verdicts["right"].tolist() == [0.5, 0.5, 1] * 2
    assert (block["accuracy"], block["n"], block["recordings"]) == (pytest.approx(2 / 3), 6, 2)


def test_seeds_are_pooled_question_by_question() -> None:
    block = accuracy(AFTER)
    assert (block["accuracy"], block["n"], block["recordings"]) == (0.75, 4, 3)
    assert block["by_seed"] == {"1": 1.0, "2": 0.5}
    assert block["mean"] == 0.75 and block["sd"] == pytest.approx(0.5 / 2**0.5)  # of 1 and 0.5
    assert by_family(AFTER)["digit"]["accuracy"] == 1.0
    assert by_family(AFTER)["kind"] | {"ci95": 0} == {
        "accuracy": 0.0, "ci95": 0, "n": 1, "recordings": 1, "by_seed": {"2": 0.0}, "mean": 0.0, "sd": None,
    }  # fmt: skip


def test_a_difference_resamples_recordings_over_all_seeds() -> None:
    """Gains by recording: one 1 + 1 of two questions, two 0 of one, three -1 of one. The least that three drawn
    recordings can give is -1 and the most is 1, each with probability 1 / 27: more than the 2.5 % that an interval
    leaves."""
    block = difference(AFTER, START)
    assert (block["accuracy"], block["n"], block["recordings"]) == (0.25, 4, 3)
    assert block["ci95"] == [-1.0, 1.0]
    assert block["by_seed"] == {"1": 0.5, "2": 0.0} and block["mean"] == 0.25
    assert difference(AFTER, AFTER)["ci95"] == [0.0, 0.0]
    with pytest.raises(ValueError, match="same questions"):
        difference(AFTER, START.iloc[::-1])


def test_a_model_that_guesses_right_without_audio_is_found_by_its_family() -> None:
    """Of 100 questions a family: 32 right are 0.07 above chance, 33 are more; 17 are more below it."""

    def answered(digit: int, kind: int) -> pandas.DataFrame:
        rows = [(1, f"{family}{n}", family, f"{family}{n}", float(n < right))
                for family, right in (("digit", digit), ("kind", kind)) for n in range(100)]  # fmt: skip
        return verdicts(*rows)

    assert blind_check({"grpo": answered(32, 25)}) == {"margin": 0.07, "held": True, "exceptions": []}
    found = blind_check({"sft": answered(25, 25), "grpo": answered(33, 17)})
    assert not found["held"]
    assert [(one["model"], one["family"]) for one in found["exceptions"]] == [("grpo", "digit"), ("grpo", "kind")]


# --- Reports


@pytest.fixture
def found() -> dict[str, Any]:
    block = accuracy(AFTER) | {"by_family": by_family(AFTER)}
    gain = difference(AFTER, START)
    model = {
        "held_out": block, "without_audio": block, "permuted": None, "held_out_sources": None, "format_rate": 0.5,
        "steps": 10.0, "flops": 2e12, "pilot": 0.0, "flops_by_seed": {"1": 1e12, "2": 3e12}, "seconds": 3.0,
    }  # fmt: skip
    pair = {"after": "grpo", "before": "sft", "held_out": gain, "by_family": dict.fromkeys(("digit", "kind"), gain)}
    exception = {"model": "sft", "family": "digit", "accuracy": 0.5, "chance": 0.25}
    said = {"grpo": "<answer>1</answer>", "sft": None}
    shown = {"id": "a", "family": "digit", "question": "Which <b>|number|</b>?", "choices": ["1", "2"], "answer": "1"}
    return {
        "seeds": [1, 2],
        "half": "report",
        "chance": 0.25,
        "models": dict.fromkeys(MODELS, model),
        "differences": [pair],
        "blind_check": {"margin": 0.07, "held": False, "exceptions": [exception]},
        "completions": [shown | {"completions": said}],
    }


def test_the_tables_say_percent_and_points(found: dict[str, Any]) -> None:
    shown = tables(found)
    right, training = shown["Right, % (95 % interval)"], shown["Training, mean over seeds"]
    assert right["+ GRPO"]["held out"].startswith("75.0 (") and right["+ GRPO"]["other sources"] == ""
    assert (training["+ SFT"]["TFLOP"], training["+ SFT"]["share of GRPO's"]) == ("2.0", "1.00")
    pair = shown["Difference on the same questions, points (95 % interval)"]["+ GRPO minus + SFT"]
    assert pair["held out"] == "+25.0 (recordings: 3)"  # too few for an interval
    found["differences"][0]["held_out"] = difference(AFTER, START) | {"recordings": 10}
    of_more = tables(found)["Difference on the same questions, points (95 % interval)"]["+ GRPO minus + SFT"]
    assert of_more["held out"] == "+25.0 (-100.0 to +100.0)"
    assert set(shown) - set(tables(found, complete=False)) == {"Difference by family, points (95 % interval)"}
    said = " ".join(sentences(found))
    assert "4 questions about 3 held-out recordings" in said and "NOT held: + SFT, digit 50.0 % (chance 25.0 %)" in said


def test_the_reports_hold_the_tables_and_nothing_that_acts(found: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, found)
    markdown, page = ((tmp_path / name).read_text() for name in ("results.md", "results.html"))
    header, rule, first = (markdown.split("## Right, % (95 % interval)\n\n")[1].splitlines()[row] for row in range(3))
    assert header.count("|") == rule.count("|") == first.count("|") and first.startswith("| warm start | 75.0 (")
    assert "&lt;b&gt;" in page and "<b>" not in page and "&lt;answer&gt;1&lt;/answer&gt;" in page
    assert "<b>" not in markdown
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_a_refused_part_leaves_nothing_that_the_right_command_would_be_refused_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "clips.csv", tmp_path / "study"
    table.write_text("path,label\n")
    parts = ["--encoder", str(tmp_path / "whisperr"), "--language-model", str(tmp_path / "qwen2")]
    data = ["--data", str(table), "--audio", str(tmp_path)]
    assert main([*parts, *data, "--output-dir", str(out)]) == 2
    said = capsys.readouterr().err
    assert "whisperr" in said and "qwen2" in said
    assert not out.exists()
