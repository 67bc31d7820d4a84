"""Tables, reports and model cards about things with hostile names: shown as text, and nothing more."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from eval.report.markdown import markdown_report
from eval.report.rendering import render
from r1_aqa_repro.common.escaping import cell, code, code_fence, markdown, visible_line
from r1_aqa_repro.data.questions import write_manifest
from r1_aqa_repro.run.completion_table import CompletionTable
from r1_aqa_repro.run.model_card import write_card
from tests.eval.made_up import evaluation_of, make_questions, mmau_records, predictions_of
from tests.files import write_json, write_lines

EVIL = (
    "a`b", "```\n# Title", "`` ` ``", "x\n\n# Title\n\n<img src=x onerror=alert(1)>", "a|b|c",
    "</code><script>1</script>",
    "[link](http://evil.example)", "![i](http://evil.example/i.png)", "`", "~~~\nx", "$x$", "\x1b]8;;http://e\x07link\x1b[0m",
    "\u202egnp.exe", "a\r\nb", "www.evil.example", "@someone", "| --- |", "*b* _i_ ~s~", "&lt;b&gt;", "\\", "\\`x`", "",
)  # fmt: skip


@pytest.mark.parametrize("begin", [*"=+-@\t\r\n\x00\x1b\x7f", "＝", "＋", "－", "＠"])
def test_a_text_that_a_spreadsheet_would_compute_is_a_text(begin: str, tmp_path: Path) -> None:
    text = f'{begin}cmd|" /C calc"!A0,x;"y"'
    assert cell(text) == f"'{text}"
    table = CompletionTable(tmp_path)
    table.add(1, [{"id": text, "completion": text, text: -0.5, "advantage": -1}])
    with open(tmp_path / "completions.csv", encoding="utf-8", newline="") as lines:
        header, row = list(csv.reader(lines))
    assert header == ["step", "id", "completion", f"'{text}", "advantage"]
    assert row == ["1", f"'{text}", f"'{text}", "-0.5", "-1"]


@pytest.mark.parametrize("value", ["", "a=b", "'=1", " =1", "1", 0, -0.5, -1, float("nan"), None, True, "a\n=b"])
def test_other_cells_stay_as_they_are(value: Any) -> None:
    assert cell(value) is value


def test_a_table_is_read_back_as_it_was_written_whatever_is_in_it(tmp_path: Path) -> None:
    """On resume, twice: nothing is escaped again, long texts are kept, and rows of no step are left out."""
    texts = ["=1", "'=1", "-", "\ta", "x" * 200_000, 'a "quoted",\nline', "\0", "\r", "é"]
    CompletionTable(tmp_path).add(1, [{"id": text, "completion": text} for text in texts])
    file = tmp_path / "completions.csv"
    before = file.read_bytes()
    with open(file, "ab") as damaged:
        damaged.write("²,a,b\n-1,a,b\nx,a,b\n".encode() + b"\xff\xff,a,b\n")
    for step in (2, 2):
        CompletionTable(tmp_path).add(step, [{"id": "more", "completion": "more"}])
    assert file.read_bytes() == before + b"2,more,more\r\n"
    assert csv.field_size_limit() == 131_072  # Python's own still, for other tables that the process reads


def shown_by(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_a_code_span_holds_everything(text: str) -> None:
    page = MarkdownIt("commonmark").render(f"before {code(text)} after")
    if text:
        assert re.fullmatch(r"<p>before <code>[^<]*</code> after</p>\n", page)
        assert shown_by(page) == f"before {visible_line(text)} after\n"
    assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_nothing_ends_a_code_block(text: str) -> None:
    fence = code_fence(text)
    page = MarkdownIt("commonmark").render(f"{fence}yaml\n{text}\n{fence}\n\nafter\n")
    assert page.count("<code") == 1 and page.endswith("</code></pre>\n<p>after</p>\n")


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_a_report_about_hostile_names_has_its_own_elements_only(text: str, tmp_path: Path) -> None:
    def report(name: str) -> str:
        asked = make_questions(2, category=name, sub_category=name, dataset=name)
        settings = {"prompt_style": "answer", "decoding": name, "checkpoint_sha256": name}
        paths = {"checkpoint": name, "data": name}
        asked[0].__dict__["id"] = asked[0].id + name
        found = predictions_of(asked, [name, None])
        return markdown_report(evaluation_of(asked, found, settings, paths=paths, folder=tmp_path))

    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    pages = [re.sub(r"<!--.*?-->", "", parser.render(report(name))) for name in ("name", text or "name")]
    elements = [re.findall(r"<(\w+)", page) for page in pages]
    assert set(elements[1]) <= set(elements[0])
    assert "http://evil" not in "".join(re.findall(r'(?:href|src)="[^"]*"', pages[1]))
    assert "\x1b" not in pages[1] and "\u202e" not in pages[1]


@pytest.mark.parametrize("text", [one for one in EVIL if one and "\0" not in one], ids=ascii)
def test_a_model_card_about_hostile_names(text: str, tmp_path: Path) -> None:
    """Its front matter is read as it was meant, its code as one block, and no name becomes an element."""

    def card_of(name: str) -> str:
        run, folder = tmp_path / name.replace("/", "") / "run", tmp_path / "model"
        run.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        model = {"model_name_or_path": name, "use_peft": True, "lora_target_modules": [name], "lora_r": 1}
        config = {"data": {"prompt_style": name}, "training": {"seed": 0, "reward_funcs": [name]}, "model": model}
        (run / "config.resolved.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        write_json(run / "run.json", {"git_commit": None, "data": {name: "0" * 64}, "versions": {"torch": "1"}})
        whole = SimpleNamespace(get_base_model=lambda: SimpleNamespace())
        trainer: Any = SimpleNamespace(
            accelerator=SimpleNamespace(unwrap_model=lambda _: whole), model=None, _name="GRPO",
            state=SimpleNamespace(log_history=[{"loss": 1.0}], global_step=3),
        )  # fmt: skip
        write_card(run, folder, trainer)
        return (folder / "README.md").read_text(encoding="utf-8")

    cards = [card_of("name"), card_of(text)]
    heads, pages = [], []
    for card in cards:
        head, _, body = card.removeprefix("---\n").partition("\n---\n")
        heads.append(yaml.safe_load(head))
        pages.append(MarkdownIt("commonmark").render(body))
    assert heads[1] == heads[0] | {"base_model": text}
    assert re.findall(r"</?(\w+)", pages[1]) == re.findall(r"</?(\w+)", pages[0])
    [lines] = re.findall(r'<pre><code class="language-python">(.*?)</code>', pages[1], re.DOTALL)
    [argument] = re.findall(r"from_pretrained\((\".*\")\)\nmodel", html.unescape(lines))
    assert json.loads(argument) == text
    [settings] = re.findall(r'<pre><code class="language-yaml">(.*?)</code>', pages[1], re.DOTALL)
    assert yaml.safe_load(html.unescape(settings))["reward_funcs"] == [text]


def test_a_comparison_of_runs_with_hostile_names(tmp_path: Path, ends: Any) -> None:
    data = write_json(tmp_path / "mmau.json", mmau_records(6))
    runs = []
    for name in ("a`|<b>x<\x1b[31m", "[l](http:⁄⁄e.x) \u202e# h\nx"):
        runs.append(write_json(tmp_path / name, mmau_records(6, model_output="Woman")))
    for module, written in (("compare", "comparison.md"), ("reconcile", "reconcile.md")):
        ended = ends(f"eval.{module}", *runs, "--data", data, "--out", tmp_path / module, code=0, names=[])
        report = (tmp_path / module / written).read_text(encoding="utf-8")
        for text in (ended.out, ended.err, report):
            assert "\x1b" not in text and "\u202e" not in text
        page = MarkdownIt("commonmark").enable("table").render(report)
        assert "<b>" not in page and "<a " not in page


def test_completions_and_choices_in_reasons_are_text(tmp_path: Path, ends: Any) -> None:
    evil = [text for text in EVIL if text]
    records = [
        record | {"choices": [text, "no"], "answer": "no", "model_output": f"{text} or B no"}
        for record, text in zip(mmau_records(len(evil)), evil, strict=True)
    ]
    file = write_json(tmp_path / "theirs.json", records)
    ended = ends("eval.reconcile", file, "--data", file, "--out", tmp_path / "out", code=0, names=[])
    report = (tmp_path / "out" / "reconcile.md").read_text(encoding="utf-8")
    for text in (ended.out, report):
        assert "\x1b" not in text and "\u202e" not in text
    page = MarkdownIt("commonmark").enable("table").render(report)
    own = {"h1", "h2", "h3", "p", "ul", "li", "em", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(re.findall(r"</?(\w+)", page)) <= own


def test_other_commands_print_names_as_text(tmp_path: Path, ends: Any) -> None:
    label = "[/red] [bold]\x1b[31m:x:\u202e"
    record = mmau_records(1)[0] | {"task": label, "category": label}
    data = write_lines(tmp_path / "[b]\x1b.jsonl", [record, record | {"id": "2"}])
    for module, code_ in (("stats", 0), ("validate", 3)):
        ended = ends(f"data_prep.{module}", data, code=code_, names=[])
        assert "\x1b" not in ended.out + ended.err and "\u202e" not in ended.out + ended.err
    assert label not in render("sweep.md.j2", **sweep(label))
    assert markdown(label) in render("sweep.md.j2", **sweep(label))


def sweep(label: str) -> dict[str, Any]:
    tally = {"correct": 1, "n": 2, "accuracy": 50.0, "ci95": [0.0, 100.0]}
    point = {"name": label, "total": tally, "task": {label: tally}, "unparsed": 0, "missing": 0}
    return {
        "run": label, "version": "unknown", "n": 2, "settings": {"prompt_style": "answer", "no_audio": False},
        "key": "task", "tasks": [label], "rows": [point], "points": [point],
        "marks": {label: []}, "sentences": [], "lines": {},
    }  # fmt: skip


def test_an_evaluation_of_questions_with_hostile_ids(
    model_folder: Path, questions: Any, tmp_path: Path, ends: Any
) -> None:
    ids = [
        "..",
        "/etc/passwd",
        "a/b",
        "-x",
        "x" * 3_000,
        "line\nfeed",
        "\x1b[31m",
        "\u202egnp.exe",
        "nul\0",
        "=1+1",
        "`|<b>",
    ]
    asked = [replace(questions[index], id=one, task=one, category=one) for index, one in enumerate(ids)]
    write_manifest(tmp_path / "manifest.jsonl", asked)
    out = tmp_path / "out"
    arguments = ["--ckpt", model_folder, "--data", tmp_path / "manifest.jsonl", "--out", out, "--device", "cpu"]
    ended = ends("eval.mmau", *arguments, "--max-new-tokens", 2, code=0, names=[])
    assert [json.loads(line)["id"] for line in (out / "predictions.jsonl").read_text().splitlines()] == ids
    assert {path.name for path in out.iterdir()} == {
        "predictions.jsonl", "settings.json", "clips.json", "scores.json", "verdicts.jsonl", "report.md", "report.html"
    }  # fmt: skip
    for text in (ended.out, ended.err, (out / "report.md").read_text(encoding="utf-8")):
        assert not {"\x1b", "\u202e", "\0"} & set(text)
