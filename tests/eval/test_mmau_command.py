"""The command as a whole: what it writes, how it goes on, what it refuses."""

import json
import os
import shutil
from pathlib import Path

import pytest

import eval.generation
from eval.evaluation import is_complete
from eval.mmau import main
from eval.run import prepare
from eval.scores import read_verdicts
from eval.settings import EvalSettings
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.data.versions import MMAU_VERSIONS, questions_digest
from tests.bad_clips import BAD_CLIPS
from tests.conftest import ROOT
from tests.eval.conftest import (
    before_each_batch,
    completions,
    cut,
    evaluate,
    flip_a_bit,
    load_generator,
    set_own_decoding,
)
from tests.files import contents, read_json, read_lines, write_lines, write_parquet
from tests.model.damages import edit_weights

FIELDS = {"id", "repeat", "completion", "answer", "status", "settings_hash", "question_hash"}


def plan_of(checkpoint, data=None, **more):
    return prepare(EvalSettings(ckpt=str(checkpoint), data=data, device="cpu", **more))


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the uninterrupted evaluation."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def test_what_is_written(whole, data):
    names = ("predictions.jsonl", "verdicts.jsonl", "clips.json", "scores.json", "settings.json", "report.html")
    assert set(contents(whole)) == {*names, "report.md"}
    ids = [question["id"] for question in read_lines(data)]
    predictions = read_lines(whole / "predictions.jsonl")
    assert [prediction["id"] for prediction in predictions] == ids
    assert all(set(prediction) == FIELDS and prediction["repeat"] == 0 for prediction in predictions)
    settings_hash = read_json(whole / "settings.json")["settings_hash"]
    assert {prediction["settings_hash"] for prediction in predictions} == {settings_hash}
    scores = read_json(whole / "scores.json")
    assert (scores["version"], scores["matcher"], scores["n"], scores["missing"]) == ("embedded", "official", 12, 0)
    assert list(read_verdicts(whole / "verdicts.jsonl")) == ids


def test_the_guide_names_every_key(model, data, tmp_path):
    guide = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for out, more in ((tmp_path / "out-no-audio", ["--no-audio"]), (tmp_path / "out", [])):
        assert evaluate(model, data, out, "--permute-choices", 2, "--limit", 3, *more) == 0
    settings, scores = read_json(out / "settings.json"), read_json(out / "scores.json")
    keys = {*settings, *settings["settings"], *settings["paths"], *scores, *scores["total"], *scores["matchers"]}
    keys |= {*scores["blind"], *scores["permutation"], *scores["repeats"], *scores["baselines"]}
    keys |= set(read_lines(out / "predictions.jsonl")[0]) | set(read_lines(out / "verdicts.jsonl")[0])
    assert {"order", "batch_sizes", "share_above_chance", "by_place"} <= keys
    assert [key for key in keys | set(contents(out)) if f"`{key}`" not in guide and f"{key}:" not in guide] == []


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.45, 0.8, 0.999])  # within a line, within a batch
def test_resumed_equals_uninterrupted(whole, copy, model, data, kept):
    cut(copy, kept)
    assert evaluate(model, data, copy) == 0
    assert contents(copy) == contents(whole)


def test_interrupted_then_resumed(whole, model, data, tmp_path, monkeypatch):
    calls = []

    def interrupt_the_second(prompts):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt

    before_each_batch(monkeypatch, interrupt_the_second)
    out = tmp_path / "out"
    assert evaluate(model, data, out) == 130
    assert len(read_lines(out / "predictions.jsonl")) == 5
    assert evaluate(model, data, out) == 0
    assert calls == [5, 5, 5, 2]  # nothing is generated twice
    assert contents(out) == contents(whole)


def test_a_complete_evaluation_is_only_scored(whole, copy, model, data, monkeypatch):
    (copy / "scores.json").unlink()
    monkeypatch.setattr(eval.generation.Generator, "load", None)
    assert evaluate(model, data, copy) == 0
    assert contents(copy) == contents(whole)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--batch-size", "4"), "batch_size was 5, now it is 4"),
        (("--max_new_tokens", "7"), "max_new_tokens was 6, now it is 7"),
        (("--repeats", "2"), "repeats was 1, now it is 2"),
        (("--permute-choices", "2"), "permute_choices was 1, now it is 2"),
        (("--decoding", "checkpoint"), "decoding was 'greedy', now it is 'checkpoint'"),
        (("--prompt_style=think",), "prompt_style was 'answer', now it is 'think'"),
        (("--no-audio",), "no_audio was False, now it is True"),
        (("--limit", "3"), "questions was 12, now it is 3"),
        (("--dtype", "bfloat16"), "dtype was 'float32', now it is 'bfloat16'"),
        (("--audio-channel", "mean"), "audio_channel was 'first', now it is 'mean'"),
    ],
)
def test_a_changed_setting_is_refused(whole, model, data, capsys, changed, named):
    before = contents(whole)
    assert evaluate(model, data, whole, *changed) == 2
    assert named in capsys.readouterr().err
    assert contents(whole) == before


def test_a_changed_checkpoint_or_data_file_is_refused(checkpoint, manifest, tmp_path, capsys):
    assert evaluate(checkpoint, manifest, tmp_path / "out", "--limit", 1) == 0
    flip_a_bit(checkpoint)
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    capsys.readouterr()
    assert evaluate(checkpoint, manifest, tmp_path / "out", "--limit", 1) == 2
    message = capsys.readouterr().err
    assert "checkpoint_sha256" in message and "data_sha256" in message


@pytest.mark.parametrize(
    ("file", "damage", "named"),
    [
        *(
            ("predictions.jsonl", damage, named)
            for damage, named in (
                (lambda lines: [lines[0], lines[1][:20], *lines[2:]], "jsonl:2: the line is damaged"),
                (lambda lines: [*lines, lines[0]], "is repeated"),
                (lambda lines: [lines[0].replace('"settings_hash": "', '"settings_hash": "0')], "other settings"),
                (lambda lines: [lines[0].replace('"question_hash": "', '"question_hash": "0')], "another question"),
            )
        ),
        ("settings.json", None, "settings.json is missing"),
        ("clips.json", lambda lines: lines[:1], "clips.json is missing or damaged"),
    ],
)
def test_a_damaged_evaluation_is_refused(copy, model, data, capsys, file, damage, named):
    lines = (copy / file).read_text(encoding="utf-8").split("\n")[:-1]
    (copy / file).unlink()
    if damage:
        (copy / file).write_text("".join(line + "\n" for line in damage(lines)), encoding="utf-8")
    assert evaluate(model, data, copy) == 2
    assert named in capsys.readouterr().err


def test_unreadable_audio_is_listed_and_counted_wrong(model, manifest, tmp_path, capsys):
    questions = read_lines(manifest)
    (manifest.parent / questions[1]["audio_path"]).unlink()
    BAD_CLIPS["wav cut off"](manifest.parent / questions[2]["audio_path"])
    ids, out = [questions[1]["id"], questions[2]["id"]], tmp_path / "out"
    assert evaluate(model, manifest, out, "--strict") == 2
    message = capsys.readouterr().err
    assert all(lost in message for lost in ids)
    assert not read_lines(out / "predictions.jsonl")
    for _ in range(2):  # and again when it is only scored
        assert evaluate(model, manifest, out) == 3
    predictions = read_lines(out / "predictions.jsonl")
    assert [prediction["status"] == "no_audio" for prediction in predictions] == [False, True, True, *[False] * 9]
    assert (predictions[1]["completion"], predictions[1]["answer"]) == (None, None)
    scores = read_json(out / "scores.json")
    assert (scores["no_audio"], scores["missing"], scores["total"]["n"]) == (ids, 2, 12)
    assert "Clips that could not be read" in (out / "report.md").read_text(encoding="utf-8")


def test_without_audio_the_model_is_given_silence(whole, model, data, tmp_path):
    """Of the clip's length, as test_inputs has it."""
    assert evaluate(model, data, tmp_path / "out", "--no-audio") == 0
    assert completions(tmp_path / "out") != completions(whole)
    assert "silence stood in place of every clip" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_the_checkpoints_own_decoding_is_never_used_unasked(checkpoint, data, answers, whole):
    own = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 4}
    set_own_decoding(checkpoint, **own)
    assert answers(checkpoint, data) == completions(whole)


def test_decoding_is_greedy_and_never_writes_an_audio_placeholder(model):
    generator = load_generator(model, max_new_tokens=7)
    config, tokenizer = generator.config, generator.processor.tokenizer
    assert (config.do_sample, config.num_beams, config.max_new_tokens) == (False, 1, 7)
    assert config.suppress_tokens == [tokenizer.convert_tokens_to_ids("<|AUDIO|>")]
    assert config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_a_hub_id(checkpoint, manifest, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(checkpoint))
    plan = plan_of("someone/a-model", manifest)
    assert plan.settings.ckpt == str(checkpoint)
    assert plan.evaluation.folder == Path("runs/eval/someone--a-model/manifest")

    def absent(name, allow_patterns):
        raise OSError("404")

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    with pytest.raises(Refused, match="nor can it be had from the hub"):
        plan_of("someone/a-model", manifest)


def test_data_are_by_default_mmau_or_the_held_out_set_or_refused(checkpoint, manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {"data": "../held_out/manifest.jsonl", "prompt_style": "direct"}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"embedded_held_out": own}), encoding="utf-8")
    evaluation = plan_of(checkpoint).evaluation
    assert Path(evaluation.paths["data"]).samefile(manifest)
    assert (evaluation.settings["prompt_style"], evaluation.version) == ("direct", "embedded")
    assert evaluation.folder == checkpoint / "eval" / "manifest"
    assert plan_of(checkpoint, no_audio=True).evaluation.folder.name == "manifest-no-audio"
    shutil.copytree(manifest.parent, tmp_path / "data" / "mmau")  # MMAU's place comes first
    assert plan_of(checkpoint).evaluation.paths["data"] == "data/mmau/manifest.jsonl"
    for made in ("run/run.json", "data/mmau/manifest.jsonl"):
        (tmp_path / made).unlink()
    with pytest.raises(Refused, match=r"python -m data_prep\.mmau"):
        plan_of(checkpoint)


def _bad_records(_, manifest):
    first, second, *others = read_lines(manifest)
    del first["answer"]
    write_lines(manifest, [first, second | {"choices": ["only one"]}, *others])


@pytest.mark.parametrize(
    ("spoil", "given", "named"),
    [
        (None, ["--ckpt", "/no/such/folder"], ["no such folder"]),
        (None, ["--data", "/no/such/file"], ["no such file"]),
        (None, ["--audio-dir", "empty"], ["name their own clips"]),
        (None, ["--adapter", "empty"], ["no adapter_config.json"]),
        (_bad_records, [], ["has no answer", "only 1 choice"]),
        (lambda _, manifest: shutil.rmtree(manifest.parent / "audio"), [], ["--audio-dir"]),
        (lambda checkpoint, _: (checkpoint / "model.safetensors").unlink(), [], ["no weights"]),
        (lambda checkpoint, _: set_own_decoding(checkpoint, num_beams=4), ["--decoding=checkpoint"], ["beam search"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    checkpoint, manifest, tmp_path, capsys, spoil, given, named
):
    if spoil is not None:
        spoil(checkpoint, manifest)
    assert evaluate(checkpoint, manifest, tmp_path / "out", *given) == 2
    message = capsys.readouterr().err
    assert [part for part in named if part not in message] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_an_absent_device_is_refused(model, data, tmp_path, capsys, device):
    assert evaluate(model, data, tmp_path / "out", "--device", device) == 2
    assert "--device" in capsys.readouterr().err


def test_a_parquet_file_is_prepared_first(model, manifest, tmp_path, monkeypatch):
    """By data_prep, which has tests of its own; here what is asked of it, and what is made of its answer."""
    asked = []

    def prepared(questions, audio, out):
        asked.append((questions, audio, out))
        shutil.copytree(manifest.parent, out, dirs_exist_ok=True)

    monkeypatch.setattr("data_prep.mmau.prepare", prepared)
    parquet, out = tmp_path / "test-00000-of-00001.parquet", tmp_path / "out"
    write_parquet(parquet, [{"id": "q0", "instruction": "What is heard?", "other_attributes": "{}"}])
    assert evaluate(model, parquet, out) == 0
    assert read_json(out / "settings.json")["paths"]["data"] == str(out / "data" / "manifest.jsonl")
    assert evaluate(model, parquet, out, "--audio-dir", tmp_path) == 0  # goes on, with clips beside it
    assert asked == [([parquet], [], out / "data"), ([parquet], [tmp_path], out / "data")]


def test_a_full_disk_ends_with_a_message_and_the_rest_comes_later(whole, model, data, tmp_path, monkeypatch, capsys):
    written = []
    sync = os.fsync

    def full(number):
        written.append(number)
        if len(written) == 4:  # clips.json, settings.json, a batch, and half of the next
            raise OSError(28, "No space left on device")
        sync(number)

    monkeypatch.setattr("os.fsync", full)
    out = tmp_path / "out"
    assert evaluate(model, data, out) == 1
    assert "No space left on device" in capsys.readouterr().err
    (out / "predictions.jsonl").write_bytes((out / "predictions.jsonl").read_bytes()[:-30])
    assert evaluate(model, data, out) == 0
    assert contents(out) == contents(whole)


def test_a_checkpoint_that_would_be_silently_wrong_is_refused(checkpoint, manifest, tmp_path, capsys):
    """What else can be wrong with one is in test_loading."""
    edit_weights(lambda weights: weights.pop(next(name for name in weights if "q_proj" in name)))(checkpoint)
    assert evaluate(checkpoint, manifest, tmp_path / "out") == 2
    assert "missing keys" in capsys.readouterr().err
    assert not (tmp_path / "out" / "scores.json").exists()


def test_questions_without_answers_are_answered_and_not_scored(model, manifest, tmp_path, capsys):
    write_lines(manifest, [{key: one[key] for key in one if key != "answer"} for one in read_lines(manifest)])
    assert evaluate(model, manifest, tmp_path / "out") == 0
    assert len(read_lines(tmp_path / "out" / "predictions.jsonl")) == 12
    assert not (tmp_path / "out" / "scores.json").exists()
    assert "withheld" in capsys.readouterr().out


def test_a_part_has_the_version_of_its_file(model, manifest, monkeypatch):
    lines = [line | {"dataset": "MMAU"} for line in read_lines(manifest)]
    write_lines(manifest, lines)
    monkeypatch.setitem(MMAU_VERSIONS, questions_digest(read_questions(manifest).records), "original")
    evaluation = plan_of(model, manifest, limit=3).evaluation
    assert (evaluation.version, len(evaluation.questions)) == ("original", 3)


def test_a_part_of_an_evaluation_is_scored_elsewhere_and_is_no_complete_one(copy):
    before = (copy / "scores.json").read_bytes()
    assert main(["--predictions", str(copy / "predictions.jsonl"), "--limit", "2"]) == 0
    assert (copy / "scores.json").read_bytes() == before
    scores = read_json(copy / "predictions-scores" / "scores.json")
    assert (scores["n"], scores["missing"]) == (2, 0)
    assert is_complete(copy)
    cut(copy, 0.3)
    assert not is_complete(copy)
