"""The command as a whole: what it writes, how it goes on, what it refuses."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import eval.generation
from eval.evaluation import is_complete
from eval.mmau import main
from eval.run import EvalSettings, evaluate, prepare
from eval.scores import read_verdicts
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.mmau_versions import MMAU_QUESTIONS, questions_digest
from r1_aqa_repro.model.files import model_digest
from r1_aqa_repro.model.loading import load, load_processor

ROOT = Path(__file__).parents[2]
FIELDS = {"id", "repeat", "completion", "answer", "status", "settings_hash", "question_hash"}


def command(checkpoint, manifest, out, *more):
    arguments = ["--ckpt", checkpoint, "--data", manifest, "--out", out, "--batch-size", 5, "--max-new-tokens", 6]
    return main([str(argument) for argument in (*arguments, "--device", "cpu", *more)])


def settings_for(checkpoint, manifest, out, **more):
    return EvalSettings(ckpt=str(checkpoint), data=manifest, out=out, device="cpu", max_new_tokens=6, **more)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(made_once, tmp_path_factory):
    """An uninterrupted evaluation."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", out) == 0
    return out


def test_what_is_written(whole, made_once):
    assert set(contents(whole)) == {
        "clips.json",
        "predictions.jsonl",
        "report.html",
        "report.md",
        "scores.json",
        "settings.json",
        "verdicts.jsonl",
    }
    questions = read_lines(made_once / "held_out" / "manifest.jsonl")
    predictions = read_lines(whole / "predictions.jsonl")
    assert [prediction["id"] for prediction in predictions] == [question["id"] for question in questions]
    assert all(set(prediction) == FIELDS and prediction["repeat"] == 0 for prediction in predictions)
    settings = json.loads((whole / "settings.json").read_text(encoding="utf-8"))
    assert {prediction["settings_hash"] for prediction in predictions} == {settings["settings_hash"]}
    scores = json.loads((whole / "scores.json").read_text(encoding="utf-8"))
    assert (scores["version"], scores["matcher"], scores["n"], scores["missing"]) == ("embedded", "official", 12, 0)
    assert list(read_verdicts(whole / "verdicts.jsonl")) == [question["id"] for question in questions]


def test_the_guide_names_every_key(made_once, tmp_path):
    guide = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    manifest = made_once / "held_out" / "manifest.jsonl"
    for out, more in ((tmp_path / "out-no-audio", ["--no-audio"]), (tmp_path / "out", [])):
        assert command(made_once / "model", manifest, out, "--permute-choices", "2", "--limit", "3", *more) == 0
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    keys = {*settings, *settings["settings"], *settings["paths"], *scores, *scores["total"], *scores["matchers"]}
    keys |= {*scores["blind"], *scores["permutation"], *scores["repeats"], *scores["baselines"]}
    keys |= set(read_lines(out / "predictions.jsonl")[0]) | set(read_lines(out / "verdicts.jsonl")[0])
    assert {"order", "batch_sizes", "share_above_chance", "by_place"} <= keys
    assert [key for key in keys | set(contents(out)) if f"`{key}`" not in guide and f"{key}:" not in guide] == []


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.45, 0.8, 0.999])
def test_resumed_equals_uninterrupted(whole, made_once, tmp_path, kept):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    content = (whole / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(content[: int(kept * len(content))])  # within a line, within a batch
    assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", out) == 0
    assert contents(out) == contents(whole)


def test_interrupted_then_resumed(whole, made_once, tmp_path, monkeypatch):
    calls = []
    answer = eval.generation.Generator.answer

    def interrupted(self, asked, warn):
        calls.append(len(asked))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, asked, warn)

    monkeypatch.setattr(eval.generation.Generator, "answer", interrupted)
    manifest, out = made_once / "held_out" / "manifest.jsonl", tmp_path / "out"
    assert command(made_once / "model", manifest, out) == 130
    assert len(read_lines(out / "predictions.jsonl")) == 5
    assert command(made_once / "model", manifest, out) == 0
    assert calls == [5, 5, 5, 2]  # nothing is generated twice
    assert contents(out) == contents(whole)


def test_a_complete_evaluation_is_only_scored(whole, made_once, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "scores.json").unlink()
    monkeypatch.setattr(eval.generation.Generator, "load", None)
    assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", out) == 0
    assert contents(out) == contents(whole)


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
def test_a_changed_setting_is_refused(whole, made_once, capsys, changed, named):
    before = contents(whole)
    assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", whole, *changed) == 2
    assert named in capsys.readouterr().err
    assert contents(whole) == before


def test_a_changed_checkpoint_or_data_file_is_refused(checkpoint, manifest, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(checkpoint, manifest, out, "--limit", 1) == 0
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    capsys.readouterr()
    assert command(checkpoint, manifest, out, "--limit", 1) == 2
    message = capsys.readouterr().err
    assert "checkpoint_sha256" in message
    assert "data_sha256" in message


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda lines: [lines[0], lines[1][:20], *lines[2:]], "jsonl:2: the line is damaged"),
        (lambda lines: [*lines, lines[0]], "is repeated"),
        (lambda lines: [lines[0].replace('"settings_hash": "', '"settings_hash": "0')], "other settings"),
        (lambda lines: [lines[0].replace('"question_hash": "', '"question_hash": "0')], "another question"),
    ],
)
def test_damaged_predictions_are_refused(whole, made_once, tmp_path, capsys, damage, named):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    (out / "predictions.jsonl").write_text("".join(line + "\n" for line in damage(lines)), encoding="utf-8")
    assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", out) == 2
    assert named in capsys.readouterr().err


def test_predictions_of_unknown_origin_are_refused(whole, made_once, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "settings.json").unlink()
    assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", out) == 2
    assert "settings.json is missing" in capsys.readouterr().err


def test_two_processes_never_write_to_one_folder(made_once, tmp_path, capsys):
    from eval.predictions import PredictionFile

    with PredictionFile(tmp_path / "out", {"prompt_style": "answer"}, {}, []):
        assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", tmp_path / "out") == 2
    assert "another process" in capsys.readouterr().err


def test_unreadable_audio_is_listed_and_counted_wrong(made_once, manifest, tmp_path, capsys):
    questions = read_lines(manifest)
    (manifest.parent / questions[1]["audio_path"]).unlink()
    (manifest.parent / questions[2]["audio_path"]).write_bytes(b"no audio")
    out = tmp_path / "out"
    assert command(made_once / "model", manifest, out, "--strict") == 2
    message = capsys.readouterr().err
    assert questions[1]["id"] in message
    assert questions[2]["id"] in message
    assert not read_lines(out / "predictions.jsonl")
    for _ in range(2):  # and again when it is only scored
        assert command(made_once / "model", manifest, out) == 3
    predictions = read_lines(out / "predictions.jsonl")
    assert [prediction["status"] == "no_audio" for prediction in predictions] == [False, True, True, *[False] * 9]
    assert (predictions[1]["completion"], predictions[1]["answer"]) == (None, None)
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["no_audio"] == [questions[1]["id"], questions[2]["id"]]
    assert (scores["missing"], scores["total"]["n"]) == (2, 12)
    assert "Clips that could not be read" in (out / "report.md").read_text(encoding="utf-8")


def test_one_at_a_time_equals_all_at_once(made_once, tmp_path):
    manifest = made_once / "held_out" / "manifest.jsonl"
    completions = []
    for batch_size in (1, 16):
        out = tmp_path / str(batch_size)
        evaluate(settings_for(made_once / "model", manifest, out, batch_size=batch_size))
        completions.append([prediction["completion"] for prediction in read_lines(out / "predictions.jsonl")])
    assert completions[0] == completions[1]
    assert len(set(completions[0])) > 6  # or the comparison would mean nothing


def test_blind_hears_silence_of_the_same_length(made_once, tmp_path, monkeypatch):
    heard = []
    process = eval.generation.process

    def listening(processor, conversations, waveforms):
        heard.extend(waveforms)
        return process(processor, conversations, waveforms)

    monkeypatch.setattr(eval.generation, "process", listening)
    manifest = made_once / "held_out" / "manifest.jsonl"
    for name, no_audio in (("sighted", False), ("blind", True)):
        evaluate(settings_for(made_once / "model", manifest, tmp_path / name, no_audio=no_audio))
    clips, silences = heard[:12], heard[12:]
    assert all(np.abs(clip).max() > 0 for clip in clips)
    assert all(not silence.any() for silence in silences)
    assert [len(clip) for clip in clips] == [len(silence) for silence in silences]
    sighted, blind = (read_lines(tmp_path / name / "predictions.jsonl") for name in ("sighted", "blind"))
    assert [one["completion"] for one in sighted] != [one["completion"] for one in blind]
    assert "Without audio: silence" in (tmp_path / "blind" / "report.md").read_text(encoding="utf-8")


def test_the_checkpoints_own_decoding_is_never_used(checkpoint, manifest, tmp_path, whole):
    path = checkpoint / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"do_sample": True, "temperature": 9.0, "top_k": 3, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1}
    path.write_text(json.dumps(config), encoding="utf-8")
    assert command(checkpoint, manifest, tmp_path / "out") == 0
    predictions = [read_lines(folder / "predictions.jsonl") for folder in (tmp_path / "out", whole)]
    assert [one["completion"] for one in predictions[0]] == [one["completion"] for one in predictions[1]]


def test_an_adapter_is_evaluated_on_its_base(checkpoint, manifest, tmp_path, whole):
    model, processor = load(checkpoint)
    adapter = tmp_path / "adapter"
    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")  # starts as no change at all
    get_peft_model(model, lora).save_pretrained(adapter)
    processor.save_pretrained(adapter)
    path = checkpoint / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1}
    path.write_text(json.dumps(config), encoding="utf-8")
    before = model_digest(adapter)
    assert command(adapter, manifest, tmp_path / "out") == 0
    predictions = [read_lines(folder / "predictions.jsonl") for folder in (tmp_path / "out", whole)]
    assert [one["completion"] for one in predictions[0]] == [one["completion"] for one in predictions[1]]
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert model_digest(adapter) != before


def test_decoding_is_greedy_and_never_writes_an_audio_placeholder(made_once):
    generator = eval.generation.Generator.load(
        made_once / "model",
        dtype="float32",
        device="cpu",
        style="answer",
        max_new_tokens=7,
    )
    config, tokenizer = generator.config, generator.processor.tokenizer
    assert (config.do_sample, config.num_beams, config.max_new_tokens) == (False, 1, 7)
    assert config.suppress_tokens == [tokenizer.convert_tokens_to_ids("<|AUDIO|>")]
    assert config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_a_hub_id(checkpoint, manifest, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(checkpoint))
    plan = prepare(EvalSettings(ckpt="someone/a-model", data=manifest, device="cpu"))
    assert (plan.folder, plan.out) == (checkpoint, Path("runs/eval/someone--a-model/manifest"))

    def absent(name, allow_patterns):
        raise OSError("404")

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    with pytest.raises(Refused, match="nor can it be had from the hub"):
        prepare(EvalSettings(ckpt="someone/a-model", data=manifest, device="cpu"))


def test_the_held_out_set_of_the_checkpoint_is_the_default(checkpoint, manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {"data": "../held_out/manifest.jsonl", "prompt_style": "direct"}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"embedded_held_out": own}), encoding="utf-8")
    plan = prepare(EvalSettings(ckpt=str(checkpoint), device="cpu"))
    assert Path(plan.paths["data"]).samefile(manifest)
    assert plan.effective["prompt_style"] == "direct"
    assert plan.version == "embedded"
    assert plan.out == checkpoint / "eval" / "manifest"
    assert prepare(EvalSettings(ckpt=str(checkpoint), no_audio=True)).out.name == "manifest-no-audio"
    shutil.copytree(manifest.parent, tmp_path / "data" / "mmau")  # MMAU's place comes first
    assert prepare(EvalSettings(ckpt=str(checkpoint))).paths["data"] == "data/mmau/manifest.jsonl"


def test_without_any_data_the_refusal_says_how_to_make_it(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--ckpt", str(checkpoint)]) == 2
    assert "python -m data_prep.mmau" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--ckpt", "/no/such/folder"], "no such folder"),
        (["--data", "/no/such/file"], "no such file"),
        (["--device", "cuda:99"], "--device"),
        (["--device", "abacus"], "--device"),
    ],
)
def test_bad_arguments_are_refused(made_once, tmp_path, capsys, arguments, named):
    defaults = ["--ckpt", made_once / "model", "--data", made_once / "held_out" / "manifest.jsonl"]
    assert main([*map(str, defaults), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["--ckpt", "x", "--batch-size", "0"], ["--ckpt", "x", "--prompt-style", "y"]]
)
def test_malformed_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_bad_data_is_refused(made_once, manifest, tmp_path, capsys):
    questions = read_lines(manifest)
    del questions[0]["answer"]
    questions[1]["choices"] = ["only one"]
    manifest.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    assert command(made_once / "model", manifest, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "has no answer" in message
    assert "only 1 choice" in message
    assert not (tmp_path / "out").exists()


def test_a_wrong_audio_folder_is_refused(made_once, manifest, tmp_path):
    shutil.rmtree(manifest.parent / "audio")
    with pytest.raises(Refused, match="--audio-dir"):
        prepare(settings_for(made_once / "model", manifest, tmp_path / "out"))


def test_a_folder_without_weights_is_refused(checkpoint, manifest, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(Refused, match="no weights"):
        prepare(settings_for(checkpoint, manifest, tmp_path / "out"))


def test_a_parquet_file_is_prepared_first(made_once, manifest, tmp_path, monkeypatch, capsys):
    """By data_prep, which has tests of its own; here what is asked of it, and what is made of its answer."""
    asked = []

    def prepared(argv):
        asked.append(argv)
        shutil.copytree(manifest.parent, argv[-1], dirs_exist_ok=True)
        return codes.pop(0)

    package, module = types.ModuleType("data_prep"), types.ModuleType("data_prep.mmau")
    package.mmau, module.main = module, prepared
    monkeypatch.setitem(sys.modules, "data_prep", package)
    monkeypatch.setitem(sys.modules, "data_prep.mmau", module)
    parquet, out = tmp_path / "test-00000-of-00001.parquet", tmp_path / "out"
    parquet.write_bytes(b"PAR1")
    codes = [0, 3, 0, 2]
    assert command(made_once / "model", parquet, out) == 0
    assert asked == [["--questions", str(parquet), "--out", str(out / "data")]]
    assert json.loads((out / "settings.json").read_text())["paths"]["data"] == str(out / "data" / "manifest.jsonl")
    assert command(made_once / "model", parquet, out) == 0  # goes on
    assert command(made_once / "model", parquet, out, "--audio-dir", tmp_path) == 0  # whose clips are unpacked, too
    assert asked[2] == ["--questions", str(parquet), "--audio", str(tmp_path), "--out", str(out / "data")]
    assert command(made_once / "model", parquet, out) == 2
    assert "could not be unpacked" in capsys.readouterr().err


def test_a_full_disk_ends_with_a_message_and_the_rest_comes_later(whole, made_once, tmp_path, monkeypatch, capsys):
    written = []
    sync = os.fsync

    def full(number):
        written.append(number)
        if len(written) == 4:  # clips.json, settings.json, a batch, and half of the next
            raise OSError(28, "No space left on device")
        sync(number)

    monkeypatch.setattr("os.fsync", full)
    out = tmp_path / "out"
    assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", out) == 1
    assert "No space left on device" in capsys.readouterr().err
    lines = (out / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(lines[:-30])
    assert command(made_once / "model", made_once / "held_out" / "manifest.jsonl", out) == 0
    assert contents(out) == contents(whole)


def _tie_head(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"].clone()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def _drop_a_tensor(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights[next(name for name in weights if "q_proj" in name)]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def _pad_audio_left(checkpoint):
    processor = load_processor(checkpoint)
    processor.feature_extractor.padding_side = "left"
    processor.save_pretrained(checkpoint)


def _other_mel_bins(checkpoint):
    processor = load_processor(checkpoint)
    processor.feature_extractor = type(processor.feature_extractor)(feature_size=64, hop_length=320, chunk_length=3)
    processor.save_pretrained(checkpoint)


def _text_only(checkpoint):
    load_processor(checkpoint).tokenizer.save_pretrained(checkpoint)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (checkpoint / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_tie_head, "tied"),
        (_drop_a_tensor, "missing keys"),
        (_pad_audio_left, "leading silence"),
        (_other_mel_bins, "mel bins"),
        (_text_only, "processor"),
    ],
)
def test_a_checkpoint_that_would_be_silently_wrong_is_refused(checkpoint, manifest, tmp_path, capsys, spoil, named):
    spoil(checkpoint)
    assert command(checkpoint, manifest, tmp_path / "out") == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out" / "scores.json").exists()


def test_questions_without_answers_are_answered_and_not_scored(made_once, manifest, tmp_path, capsys):
    questions = read_lines(manifest)
    for question in questions:
        del question["answer"]
    manifest.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    assert command(made_once / "model", manifest, tmp_path / "out") == 0
    assert len(read_lines(tmp_path / "out" / "predictions.jsonl")) == 12
    assert not (tmp_path / "out" / "scores.json").exists()
    assert "withheld" in capsys.readouterr().out


def test_help_comes_at_once():
    """It needs none of the libraries whose import takes seconds."""
    code = (
        "import sys\nfrom eval.mmau import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    assert not {'torch', 'transformers', 'librosa'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--ckpt" in done.stdout, done.stderr


def test_a_part_has_the_version_of_its_file(made_once, manifest, tmp_path, monkeypatch):
    lines = [line | {"dataset": "MMAU"} for line in read_lines(manifest)]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    digest = questions_digest((one["id"], one["question"], one["choices"], one["answer"]) for one in lines)
    monkeypatch.setitem(MMAU_QUESTIONS, digest, "original")
    plan = prepare(settings_for(made_once / "model", manifest, tmp_path / "out", limit=3))
    assert (plan.version, len(plan.questions)) == ("original", 3)


def test_the_command_in_the_report_is_accepted(made_once, manifest, tmp_path):
    """Also of clips that lie outside the data file's folder; it goes on with the very evaluation it was printed by."""
    lines = read_lines(manifest)
    (manifest.parent / "audio").rename(tmp_path / "clips")
    for line in lines:
        line["audio_path"] = str(tmp_path / "clips" / Path(line["audio_path"]).name)
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "out"
    assert command(made_once / "model", manifest, out, "--limit", "3") == 0
    before = contents(out)
    (line,) = [line for line in before["report.md"].decode().splitlines() if line.startswith("    python -m eval.mmau")]
    assert main([*shlex.split(line)[3:], "--out", str(out), "--device", "cpu"]) == 0
    assert contents(out) == before


def test_an_audio_dir_that_the_records_do_not_use_is_refused(checkpoint, manifest, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert command(checkpoint, manifest, tmp_path / "out", "--audio-dir", str(tmp_path / "empty")) == 2
    assert "name their own clips" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_of_an_evaluation_is_scored_elsewhere_and_is_no_complete_one(whole, tmp_path):
    folder = tmp_path / "F"
    shutil.copytree(whole, folder)
    before = (folder / "scores.json").read_bytes()
    assert main(["--predictions", str(folder / "predictions.jsonl"), "--limit", "2"]) == 0
    assert (folder / "scores.json").read_bytes() == before
    part = json.loads((folder / "predictions-scores" / "scores.json").read_text(encoding="utf-8"))
    assert part["n"] == 2
    assert is_complete(folder)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    assert not is_complete(folder)
