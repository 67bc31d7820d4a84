"""The model card of a study, and its upload to a hub, which here is one of this machine."""

import html
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from markdown_it import MarkdownIt

from eval.reproduction.card import chosen_of
from eval.reproduction.push import main
from eval.reproduction.report import write
from r1_aqa_repro.common.errors import Refused
from tests.eval.reproduction.hub import Hub
from tests.eval.reproduction.made_up_study import figures, row, study
from tests.files import contents
from tests.hostile_texts import HOSTILE

TOKEN = "hf_made_up"


def card_of(out):
    """The front matter of a study's card, and the rest."""
    write(out)
    text = (out / "card" / "README.md").read_text(encoding="utf-8")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(head), body


def code_of(body, language):
    [text] = re.findall(rf'<pre><code class="language-{language}">(.*?)</code>', MarkdownIt().render(body), re.DOTALL)
    return html.unescape(text)


def test_a_card_tells_what_how_and_how_well(tmp_path):
    head, body = card_of(study(tmp_path / "out", figures()))
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "audio-text-to-text",
        "base_model": "Qwen/Qwen2-Audio-7B-Instruct",
        "tags": ["grpo", "r1-aqa-repro"],
    }
    assert "| this model | 64.51 | 65.51 | 66.51 | 64.51 | 50.0 to 60.0 |" in body  # of seed 2
    assert "| GRPO, prompt 2, mean of 2 seeds | 63.75 | 64.75 | 65.75 | 63.75 | 60.8 to 66.8 |" in body
    assert "| GRPO, prompt 2, as published | 69.37 | 66.77 | 57.36 | 64.50 | |" in body
    assert "- Without audio, mean over seeds: 33.25 (30.0 to 36.5), -30.50 points (-34.00 to -27.00)." in body
    assert "The claim of thinking\\_does\\_not\\_help. Not run." in body
    assert "GRPO - the other of rl\\_beats\\_sft is +11.25 points, +8.50 to +14.00." in body
    assert "Of 1,000 test questions 2 are about audio that is in the training data too" in body
    assert "38,000 to train, 500 held out" in body and "- `train.jsonl`, SHA-256 ffff" in body
    assert "standard deviation over 2 seeds 1.25 points" in body
    assert yaml.safe_load(code_of(body, "yaml"))["max_steps"] == 1000
    assert "Qwen2AudioForConditionalGeneration.from_pretrained(folder)" in code_of(body, "python")
    assert "in <answer> </answer>" in code_of(body, "text")
    assert "somebody" not in body and "REHEARSAL" not in body


def test_a_rehearsal_has_nothing_of_the_papers(tmp_path):
    _, body = card_of(study(tmp_path / "out", figures("rehearsed", "embedded", 900)))
    assert body.strip().split("\n")[2].startswith("**REHEARSAL.")
    assert "as published" not in body and "64.50" not in body and "MMAU test-mini" not in body


def test_a_base_of_this_machine_is_named_without_its_folder(tmp_path):
    base = tmp_path / "private" / "tiny"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    head, body = card_of(study(tmp_path / "out", figures(), base, use_peft=True, lora_r=8))
    assert head["license"] == "apache-2.0" and head["library_name"] == "peft" and "base_model" not in head
    assert "apache-2.0, that of the model it was trained from" in body
    assert str(tmp_path) not in body
    assert 'from_pretrained("tiny")\nmodel = PeftModel.from_pretrained(base, folder)' in code_of(body, "python")
    assert yaml.safe_load(code_of(body, "yaml"))["lora_r"] == 8


def test_the_seed_that_is_best_on_held_out_questions_is_chosen():
    content = figures()
    main_row = content["table"][2]
    assert (chosen_of(content).seed, chosen_of(content).checkpoint) == ("2", "checkpoint-200")
    main_row["seeds"]["1"]["held_out"] = main_row["seeds"]["2"]["held_out"]
    assert chosen_of(content).seed == "1"  # of equals the first, though the test says otherwise
    main_row["seeds"]["1"] = {"status": "not run"}
    assert chosen_of(content).seed == "2"
    content["table"][2] = row("grpo", "GRPO", "run", None, {}, role="main")
    assert chosen_of(content) is None


def test_without_a_chosen_model_there_is_a_report_and_no_card(tmp_path):
    content = figures()
    content["table"][2]["role"] = None
    out = study(tmp_path / "out", content)
    write(out)
    assert (out / "report.md").exists() and not (out / "card").exists()
    assert "model card" not in (out / "report.md").read_text(encoding="utf-8")


def test_a_training_that_does_not_say_what_it_was_is_refused(tmp_path):
    out = study(tmp_path / "out", figures())
    file = out / "bundle" / "trainings" / "grpo" / "seed-2" / "config.resolved.yaml"
    file.write_text("training: {seed: 1}\n", encoding="utf-8")
    with pytest.raises(Refused, match="yaml: it does not say model_name_or_path, use_peft, prompt_style"):
        write(out)
    assert not (out / "report.md").exists()


def test_hostile_names_are_text_in_a_card(tmp_path):
    pages = []
    for place, texts in enumerate((["text"] * len(HOSTILE), HOSTILE)):
        content = figures()
        for index, one in enumerate(content["table"]):
            one["label"] = texts[index]
        content["name"], content["version"], content["findings"][0]["claim"] = texts[4:7]
        head, body = card_of(study(tmp_path / str(place), content))
        assert set(head) == {"library_name", "pipeline_tag", "base_model", "tags"}
        pages.append(MarkdownIt("commonmark").enable("table").render(body))
    assert re.findall(r"</?(\w+)", pages[1]) == re.findall(r"</?(\w+)", pages[0])


@pytest.fixture
def trained(tmp_path):
    """A study whose report is written, with the checkpoint that was chosen."""
    out = study(tmp_path / "out", figures())
    write(out)
    model = out / "arms" / "grpo" / "seed-2" / "run" / "checkpoint-200"
    model.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "optimizer.pt", "trainer_state.json"):
        (model / name).write_bytes(name.encode() * 100)
    (model / "README.md").write_text("the card of the training", encoding="utf-8")
    return out


def pushed(address, *arguments):
    """How the command ends, as it is typed."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-m", "eval.reproduction.push", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_model_and_its_card_go_up_when_it_is_asked_for(trained):
    hub, before = Hub(), contents(trained)
    with hub.running() as address:
        ended = pushed(address, trained, "--repo", "someone/r1-aqa")
    assert ended.returncode == 0, ended.stderr
    assert f"they are at {address}/someone/r1-aqa" in ended.stderr
    (made,) = hub.created
    assert (made["organization"], made["name"], made["visibility"]) == ("someone", "r1-aqa", "private")
    assert hub.tokens == {f"Bearer {TOKEN}"}
    model = trained / "arms" / "grpo" / "seed-2" / "run" / "checkpoint-200"
    names = ("model.safetensors", "config.json", "tokenizer.json")  # no optimizer, no state of a trainer
    assert hub.files == {
        ("someone/r1-aqa", "README.md"): (trained / "card" / "README.md").read_bytes(),
        **{("someone/r1-aqa", name): (model / name).read_bytes() for name in names},
    }
    assert sum("/commit/" in path for _, path in hub.requests) == 1
    assert contents(trained) == before


def test_what_the_hub_says_no_to_is_told(trained):
    hub = Hub()
    hub.refuses = "/commit/"
    with hub.running() as address:
        ended = pushed(address, trained, "--repo", "someone/r1-aqa", "--public")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "someone/r1-aqa was not written" in ended.stderr and "403" in ended.stderr
    assert hub.created[0]["visibility"] == "public" and hub.files == {}


@pytest.mark.parametrize(
    ("damage", "repo", "what"),
    [
        (lambda out: None, "some one/r1", "--repo"),
        (lambda out: (out / "card" / "README.md").unlink(), "a/b", "README.md: there is no such file"),
        (
            lambda out: next(out.rglob("*.safetensors")).unlink(),
            "a/b",
            "checkpoint-200: the checkpoint holds no weights",
        ),
        (lambda out: rewrite(out, figures() | {"table": []}), "a/b", "no checkpoint was chosen and tested"),
    ],
    ids=["name", "card", "weights", "arm"],
)
def test_nothing_is_sent_if_something_is_missing(trained, monkeypatch, capsys, damage, repo, what):
    def sent(*_, **__):
        raise AssertionError("nothing should be sent")

    monkeypatch.setattr("eval.reproduction.push.upload", sent)
    damage(trained)
    assert main([str(trained), "--repo", repo]) == 2
    assert what in capsys.readouterr().err


def rewrite(out, content):
    (out / "bundle" / "figures.json").write_text(json.dumps(content), encoding="utf-8")
