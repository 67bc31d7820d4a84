"""Preference pairs in every format: what they become, what is refused, what is held out, and what a kill leaves."""

import datetime
import json
import math
import os
import random
import re
from collections import Counter

import pytest
from trl.data_utils import extract_prompt

from data_prep.preference_formats import FORMATS, TEXT_EXTRACTED
from data_prep.preferences import CONTRADICTION, is_held_out, main
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_LOSSES, EXIT_REFUSED
from r1_aqa_repro.data.conversations import read_pairs
from tests.data_prep.conftest import Prepared, peak_of
from tests.files import contents, read_lines, write_lines, write_parquet
from tests.hostile_texts import HOSTILE

DIALOGUE = "trl texts, dialogue split into turns"
TRL = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


def turn(role, text):
    return {"role": role, "content": text}


def said(who, text):
    return {"from": who, "value": text}


def chat(*texts):
    """Messages by turns, the user first."""
    return [turn(("user", "assistant")[index % 2], text) for index, text in enumerate(texts)]


def chats(*rejected, chosen=("Why?", "Because."), after=()):
    """A pair of whole conversations, which go on after common turns."""
    return {"chosen": chat(*after, *chosen), "rejected": chat(*after, *rejected)}


def line(record_id, prompt, chosen, rejected, **columns):
    answers = {"chosen": [turn("assistant", chosen)], "rejected": [turn("assistant", rejected)]}
    return {"id": record_id, "prompt": prompt, **answers, **columns}


def sharegpt(**changed):
    answers = {"chosen": said("gpt", "Because."), "rejected": said("gpt", "No.")}
    return {"conversations": [said("human", "Why?")], **answers, **changed}


def conversation(*turns):
    return sharegpt(conversations=list(turns))


def alpaca(**changed):
    return {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No.", **changed}


class Case(Prepared):
    """A file of records, and a folder that is made for what they become."""

    def __init__(self, folder):
        super().__init__(folder / "new")
        self.input = folder / "pairs.jsonl"

    def write(self, *records):
        write_lines(self.input, records)
        return self

    def run(self, *options, held_out=0.0, out=None):
        self.out = self.out.with_name(out) if out else self.out
        return main(["--input", str(self.input), "--out", str(self.out), "--held-out", str(held_out), *options])

    @property
    def train(self):
        return read_lines(self.out / "train.jsonl")

    @property
    def held_out(self):
        return read_lines(self.out / "held_out.jsonl")

    def wrote_nothing(self):
        return [path.name for path in self.input.parent.iterdir()] in ([self.input.name], [])


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


BRIEF = turn("system", "Be brief.")
THREE = chat("Hi", "Hello", "Why?")
CONVERSION = [
    (
        "trl texts",
        {"id": "a", "prompt": "Why is it blue?", "chosen": " It scatters.", "rejected": " No idea.", "task": "list"},
        line("a", chat("Why is it blue?"), " It scatters.", " No idea.", task="list"),
    ),
    (
        TEXT_EXTRACTED,
        {"id": 1, "chosen": "The sky is blue.", "rejected": "The sky is green."},
        line("1", chat("The sky is"), " blue.", " green."),
    ),
    (
        TEXT_EXTRACTED,  # the words that differ begin alike
        {"id": 1, "chosen": "Name two fruits.\n1. pear 2. plum", "rejected": "Name two fruits.\n1. peach 2. plum"},
        line("1", chat("Name two fruits.\n1."), " pear 2. plum", " peach 2. plum"),
    ),
    (
        DIALOGUE,  # the form of HH-RLHF; the answers begin alike
        {"id": 1, "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Two fruits?\n\nAssistant: 1. pear 2. plum",
         "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Two fruits?\n\nAssistant: 1. plum 2. plum"},
        line("1", chat("Hi", "Hello", "Two fruits?"), "1. pear 2. plum", "1. plum 2. plum"),
    ),
    (
        DIALOGUE,  # the same with a prompt of its own
        {"id": 1, "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:", "chosen": " Because.",
         "rejected": " Never."},
        line("1", THREE, "Because.", "Never."),
    ),
    (
        "trl messages",
        {"prompt": [BRIEF, *THREE], "chosen": chat("?", "Because.")[1:], "rejected": chat("?", "No.")[1:],
         "margin": 1.5, "chosen_score": 9, "rejected_score": 7.5},
        line("pairs.jsonl:line 1", [BRIEF, *THREE], "Because.", "No.", margin=1.5, score_chosen=9, score_rejected=7.5),
    ),
    (
        "trl messages, prompt extracted",
        {"id": "a", "chosen": chat("Hi", "Hello", "Why?", "Because."), "rejected": chat("Hi", "Hello", "Why?", "No.")},
        line("a", THREE, "Because.", "No."),
    ),
    (
        "trl messages, prompt extracted",  # the form of UltraFeedback
        {"id": "a", "prompt": "Why?", "chosen": chat("Why?", "Because."), "rejected": chat("Why?", "No.")},
        line("a", chat("Why?"), "Because.", "No."),
    ),
    (
        "sharegpt",
        {**conversation(said("human", "Hi"), said("gpt", "Hello"), said("human", "Why?")), "id": "a",
         "system": "Be brief.", "rejected": said("gpt", "Never.")},
        line("a", [BRIEF, *THREE], "Because.", "Never."),
    ),
    (
        "sharegpt",
        {**conversation(said("system", "Be brief."), said("human", "Why?")), "id": "a", "system": ""},
        line("a", [BRIEF, *chat("Why?")], "Because.", "No."),
    ),
    (
        "alpaca",
        {"id": "a", "instruction": "Translate.", "input": "chat", "chosen": "cat", "rejected": "dog"},
        line("a", chat("Translate.\nchat"), "cat", "dog"),
    ),
    (
        "alpaca",
        alpaca(id="a", system="Be brief.", history=[["Hi", "Hello"], ["You?", "Fine."]]),
        line("a", [BRIEF, *chat("Hi", "Hello", "You?", "Fine.", "Why?")], "Because.", "No."),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "record", "expected"), CONVERSION)
def test_every_format_becomes_messages_with_explicit_prompt(case, shape, record, expected):
    format_name = shape.split()[0]
    for chosen_format in ("auto", format_name):
        assert case.write(record).run("--format", chosen_format, out=chosen_format) == EXIT_DONE
        assert case.train == [expected]
        assert list(case.train[0]) == list(expected)  # in the same order
        assert case.report["formats"] == {shape: 1}
        assert read_pairs(case.out / "train.jsonl").problems == []
    for other in set(FORMATS) - {"auto", format_name}:
        assert case.run("--format", other, out=other) == EXIT_REFUSED


def test_formats_may_be_mixed_in_one_file_and_what_is_written_is_read_again_unchanged(case):
    case.write(*({**record, "id": number} for number, (_, record, _) in enumerate(CONVERSION))).run()
    expected = [{**line, "id": str(number)} for number, (*_, line) in enumerate(CONVERSION)]
    assert case.train == expected
    assert case.report["formats"] == Counter(shape for shape, *_ in CONVERSION)
    case.input = case.out / "train.jsonl"
    assert case.run(out="again") == EXIT_DONE
    assert case.train == expected


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("The sky is  blue.", "The sky is  green."),  # of two spaces one
        ("Q: 1 + 1?\nA: 2", "Q: 1 + 1?\nA: 3"),
        ("Q: colour?\nA: black", "Q: colour?\nA: red"),
        (chat("Hi", "Hello"), chat("Hi", "Go away")),
        (chat("Hi", "Hello", "Why?", "Because."), chat("Hi", "Hello", "Why?", "No.")),
    ],
)
def test_an_implicit_prompt_is_what_trl_extracts(case, chosen, rejected):
    case.write({"chosen": chosen, "rejected": rejected}).run()
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    [found] = case.train
    if isinstance(chosen, str):
        found = {key: found[key][0]["content"] for key in expected}
    assert {key: found[key] for key in expected} == expected


def test_a_prompt_extracted_from_texts_is_warned_of(case, capsys):
    case.write({"chosen": "It is blue", "rejected": "It is black"}).run()
    assert "warning: 1 prompts are what the two texts of a pair have in common at their beginning" in (
        capsys.readouterr().err
    )
    case.write(TRL).run(out="with a prompt")
    assert "in common" not in capsys.readouterr().err


def test_texts_come_through_as_they_are(case):
    records = [
        {"prompt": one, "chosen": two, "rejected": three}
        for one, two, three in zip(HOSTILE, [*HOSTILE[1:], "a"], [*HOSTILE[2:], "b", "c"], strict=True)
    ]
    case.write(*records).run()
    written = [{key: one[key][0]["content"] for key in ("prompt", "chosen", "rejected")} for one in case.train]
    assert written == records


def test_rows_of_a_parquet_file_are_pairs(case):
    records = [sharegpt(id="a", system=None), sharegpt(id="b", system="Be brief.")]
    rows = [{**record, "made": datetime.date(2024, 2, 29)} for record in records]  # JSON knows no dates
    write_parquet(case.input, rows)
    assert case.run() == EXIT_DONE
    assert case.train == [
        line("a", chat("Why?"), "Because.", "No."),
        line("b", [BRIEF, *chat("Why?")], "Because.", "No."),
    ]


def test_further_keys_are_left_out_and_counted(case, capsys):
    case.write({**TRL, "id": "a", "source": "web", "score": 1}, {**TRL, "prompt": "How?", "source": None}).run()
    assert list(case.train[0]) == ["id", "prompt", "chosen", "rejected"]
    assert case.report["keys_left_out"] == {"score": 1, "source": 2}
    assert "keys left out: 'score' (1), 'source' (2)" in capsys.readouterr().err


# of each: what is wrong, and the record
BAD_RECORDS = [
    ("expected an object, found int", 3),
    ("id 'first' was already used at {file}:line 1", {**TRL, "id": "first", "prompt": "How?"}),
    # formats
    ("unknown format with the keys ['answers', 'question']", {"question": "?", "answers": []}),
    (
        "ambiguous format: the keys ['chosen', 'conversations', 'prompt', 'rejected'] are those of trl and sharegpt",
        {**sharegpt(), "prompt": "Why?"},
    ),
    ("rejected absent or null, only ['chosen', 'prompt', 'rejected']", {**TRL, "rejected": None}),
    ("system has no place in the format trl and would be lost", {**TRL, "system": "Hm."}),
    ("prompt is str, chosen is list, rejected is str", {**TRL, "chosen": chat("A", "B")}),
    # trl texts
    ("prompt is empty", {**TRL, "prompt": " "}),
    ("chosen and rejected are identical", {**TRL, "chosen": "No. "}),
    (
        "chosen and rejected have no common prompt: they begin differently",
        {"chosen": "Yes, it is.", "rejected": "No."},
    ),
    (
        "one of chosen and rejected is the beginning of the other, so nothing tells where the answers begin",
        {"chosen": "The sky is", "rejected": "The sky is blue."},
    ),
    ("the answer in chosen is empty", {"id": 12, "chosen": "Why? ", "rejected": "Why?\n!"}),
    ("task is int, expected a text", {**TRL, "task": 3}),
    ("score_chosen is 9, chosen_score is 8", {**TRL, "score_chosen": 9, "chosen_score": 8}),
    ("malformed JSON (NaN is no JSON)", json.dumps({**TRL, "margin": math.nan})),
    # dialogues written as one text
    (
        "one of chosen and rejected goes on where the other ends",
        {"chosen": "Human: Hi\n\nAssistant: A\n\nHuman: Why?", "rejected": "Human: Hi\n\nAssistant: A"},
    ),
    (
        "chosen and rejected answer different prompts: message 1 differs",
        {"chosen": "Human: Hi\n\nAssistant: A", "rejected": "Human: Hey\n\nAssistant: B"},
    ),
    (
        "rejected has turns of Human and Assistant, but begins with 'Be brief.'",
        {"chosen": "Human: Hi\n\nAssistant: A", "rejected": "Be brief.\n\nHuman: Hi\n\nAssistant: B"},
    ),
    (
        "chosen message 2 has an empty content",
        {"chosen": "Human: Hi\n\nAssistant:\n\nHuman: Why?\n\nAssistant: A", "rejected": "Human: Hi\n\nAssistant: B"},
    ),
    # trl messages
    ("chosen and rejected answer different prompts: message 3 differs", chats("How?", "No.", after=["Hi", "Hello"])),
    (
        "chosen and rejected have no common prompt: they begin with the answers",
        {"chosen": chat("?", "Yes.")[1:], "rejected": chat("?", "No.")[1:]},
    ),
    ("one of chosen and rejected goes on where the other ends", chats("Why?", "Because.", "Oh?", "Yes.")),
    ("chosen and rejected are identical", chats("Why?", "Because.")),
    (
        "chosen and rejected do not have the prompt among their common messages",
        {**chats("Why?", "No."), "prompt": "How?"},
    ),
    # sharegpt
    ("conversations message 1 has no from, only ['value']", conversation({"value": "Why?"})),
    ("chosen is str, expected an object", sharegpt(chosen="Because.")),
    ("chosen has messages of human, expected one message of gpt", sharegpt(chosen=said("human", "Because."))),
    (
        "system is given twice, as a key and as the first of conversations",
        {**conversation(said("system", "A"), said("human", "Why?")), "system": "B"},
    ),
    # alpaca
    ("instruction is empty", alpaca(instruction="")),
    ("history is [['Hi']], expected a list of questions with their answers", alpaca(history=[["Hi"]])),
    ("answer 1 of history is empty", alpaca(history=[["Hi", ""]])),
]


@pytest.mark.parametrize(("what", "record"), BAD_RECORDS)
def test_a_bad_record_refuses_the_file_and_nothing_is_written(case, capsys, what, record):
    case.write({**TRL, "id": "first"}, "", record)
    assert case.run() == EXIT_REFUSED
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {case.input}:line 3: {what.replace('{file}', str(case.input))}. ")
    assert case.wrote_nothing()


def test_all_bad_records_are_named_at_once_or_left_out(case, capsys):
    case.write({**TRL, "id": "first"}, *(record for _, record in BAD_RECORDS), {**TRL, "id": "last", "prompt": "What?"})
    assert case.run() == EXIT_REFUSED
    shown = capsys.readouterr().err.splitlines()
    told = [int(number) for line in shown for number in re.findall(r"(?:holds for|\.\.\. and) (\d+) more", line)]
    assert len(shown) == 21 and 20 + sum(told) == len(BAD_RECORDS)
    assert case.wrote_nothing()

    assert case.run("--skip-bad-records") == EXIT_LOSSES
    assert [one["id"] for one in case.train] == ["first", "last"]
    report, number = case.report, len(BAD_RECORDS)
    assert (report["records_in"], report["kept"]) == (number + 2, 2)
    own_ids = {2: "first", 12: "12"}  # by the number of the bad record
    places = [own_ids.get(place, f"pairs.jsonl:line {place + 1}") for place in range(1, number + 1)]
    assert report["dropped"]["bad record"] == places
    for (what, _), detail in zip(BAD_RECORDS, report["details"]["bad record"], strict=True):
        assert what.replace("{file}", str(case.input)) in detail
    assert f"dropped, bad record: {number}" in capsys.readouterr().err


def test_nothing_but_bad_records(case, capsys):
    case.write("3", "{")
    assert case.run("--skip-bad-records") == EXIT_REFUSED
    where = [message.split(": ")[1] for message in capsys.readouterr().err.splitlines()]
    assert where == [f"{case.input}:line 1", f"{case.input}:line 2"]
    assert case.wrote_nothing()


@pytest.mark.parametrize("options", [["--held-out", "1"], ["--held-out", "-0.1"], ["--format", "kto"]])
def test_options_that_cannot_be(case, options):
    with pytest.raises(SystemExit) as exit_:
        case.write(TRL).run(*options)
    assert exit_.value.code == EXIT_REFUSED
    assert case.wrote_nothing()


def test_the_same_pair_twice_is_kept_once(case):
    again = {**TRL, "task": "list"}
    case.write({**TRL, "id": "a"}, {**again, "id": "b"}, {**TRL, "id": "a"}, {**TRL, "id": "c", "rejected": "Never."})
    assert case.run() == EXIT_DONE
    assert [one["id"] for one in case.train] == ["a", "c"]
    assert case.report["dropped"] == {"duplicate": ["b", "a"]}
    assert case.report["details"] == {"duplicate": ["b: the same pair as a", "a: the same pair as a"]}


def test_pairs_that_contradict_each_other_are_dropped_on_both_sides(case, capsys):
    swapped = {**TRL, "chosen": TRL["rejected"], "rejected": TRL["chosen"]}
    other = [{**TRL, "id": "d", "prompt": "How?"}, {**swapped, "id": "e", "prompt": "What?"}]  # of other prompts: none
    case.write({**TRL, "id": "a"}, {**swapped, "id": "b"}, {**TRL, "id": "c"}, *other)
    assert case.run() == EXIT_DONE
    assert [one["id"] for one in case.train] == ["d", "e"]
    assert case.report["dropped"] == {CONTRADICTION: ["a", "b", "c"]}
    assert case.report["kept"] == 2 and case.report["records_in"] == 5
    assert "a: b prefers the other one of the same two answers" in capsys.readouterr().err

    case.write({**TRL, "id": "a"}, {**swapped, "id": "b"})
    assert case.run(out="nothing") == EXIT_REFUSED
    assert not case.out.exists()


def prompts(number, seed=0):
    """Pairs with different prompts."""
    generator = random.Random(seed)
    return [
        {"id": index, "prompt": f"Question {generator.random()}?", "chosen": "Yes.", "rejected": "No."}
        for index in range(number)
    ]


def test_all_prompts_of_one_question_are_on_one_side():
    """Of another turn of the same conversation, with another system message and in another spelling as well."""
    number_held_out = 0
    for number in range(300):
        question = f"Question {number}?"
        prompts = (
            chat(question),
            chat(f"  {question.upper()} "),
            [turn("system", f"You are number {number}."), *chat(question)],
            chat(question, "Yes.", "Really?"),
        )
        (side,) = {is_held_out(prompt, 0.3, 0) for prompt in prompts}
        number_held_out += side
    assert abs(number_held_out / 300 - 0.3) < 0.1  # nearly four standard errors, and the seed is fixed


def test_more_data_moves_no_prompt_to_the_other_side(case):
    records = prompts(400)
    case.write(*records[:200]).run(held_out=0.2)
    train, held_out = case.train, case.held_out
    assert {is_held_out(one["prompt"], 0.2, 0) for one in train} == {False}
    assert {is_held_out(one["prompt"], 0.2, 0) for one in held_out} == {True}
    assert (case.report["train"], case.report["held_out"]) == (len(train), len(held_out))
    case.write(*records).run(held_out=0.2, out="more")
    assert case.train[: len(train)] == train and case.held_out[: len(held_out)] == held_out


def test_a_greater_fraction_only_adds_and_another_seed_draws_anew():
    asked = [chat(record["prompt"]) for record in prompts(500)]

    def held_out(fraction, seed):
        return {prompt[0]["content"] for prompt in asked if is_held_out(prompt, fraction, seed)}

    assert held_out(0.1, 0) < held_out(0.5, 0)
    assert held_out(0.0, 0) == set()
    both = held_out(0.5, 0) & held_out(0.5, 1)
    assert 80 < len(both) < 170  # 125 expected, standard deviation under 10


def test_nothing_to_train_on_is_refused_and_nothing_held_out_is_told(case, capsys):
    seed = next(seed for seed in range(100) if is_held_out(chat(TRL["prompt"]), 0.5, seed))
    assert case.write(TRL).run("--seed", str(seed), held_out=0.5) == EXIT_REFUSED
    assert case.wrote_nothing()
    assert "all of its 1 pairs would be held out" in capsys.readouterr().err
    assert case.run() == EXIT_DONE
    assert case.held_out == []
    assert "warning: no pair is held out" in capsys.readouterr().err


def result(folder):
    """The bytes of every file, without the one figure that depends on the machine."""
    found = contents(folder)
    report = json.loads(found.pop("prep_report.json"))
    assert report.pop("seconds") >= 0
    return found, report


def test_a_second_run_gives_the_same_bytes(case):
    case.write(*prompts(50), TRL, TRL, {**TRL, "chosen": ""})
    assert case.run("--skip-bad-records", held_out=0.3) == EXIT_LOSSES
    first = result(case.out)
    assert set(first[0]) == {"train.jsonl", "held_out.jsonl", "prep_settings.json"}
    assert case.run("--skip_bad_records", held_out=0.3) == EXIT_LOSSES  # into the same folder
    assert result(case.out) == first
    case.out.with_name("empty").mkdir()
    assert case.run("--skip-bad-records", held_out=0.3, out="empty") == EXIT_LOSSES
    assert result(case.out) == first  # and nothing hidden beside it


def test_a_folder_of_another_input_or_of_other_settings_is_refused_and_left_as_it_is(case, capsys):
    case.write(TRL).run()
    before = result(case.out)
    assert case.run("--seed", "1") == EXIT_REFUSED
    assert "seed was 0, now it is 1. Give another --out." in capsys.readouterr().err
    assert case.write({**TRL, "prompt": "How?"}).run() == EXIT_REFUSED
    assert f"error: {case.out / 'prep_settings.json'}: input was 'pairs.jsonl, sha256 " in capsys.readouterr().err
    assert result(case.out) == before


def test_files_from_elsewhere_are_not_overwritten(case, capsys):
    """Be it the input itself."""
    case.out.mkdir(parents=True)
    case.input = case.out / "train.jsonl"
    content = case.write(TRL).input.read_bytes()
    assert case.run() == EXIT_REFUSED
    assert "it holds train.jsonl from elsewhere" in capsys.readouterr().err
    assert contents(case.out) == {"train.jsonl": content}


@pytest.mark.parametrize("left", range(4))
def test_an_interruption_leaves_whole_files_and_the_report_comes_last(case, monkeypatch, left):
    case.write(*prompts(200)).run(held_out=0.3)
    whole, replace = result(case.out), os.replace
    names = ["prep_settings.json", "held_out.jsonl", "train.jsonl", "prep_report.json"][:left]

    def interrupted(source, target):
        if target.name not in names:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert case.run(held_out=0.3, out="interrupted") == EXIT_INTERRUPTED
    assert contents(case.out).items() <= whole[0].items() and len(contents(case.out)) == left
    assert case.run(held_out=0.3) == EXIT_DONE
    assert result(case.out) == whole


def test_a_place_that_cannot_be_written_is_refused(case, capsys):
    case.write(TRL)
    case.out = case.input / "below a file"
    assert case.run() == EXIT_REFUSED
    assert "Not a directory" in capsys.readouterr().err
    assert case.wrote_nothing()


def test_memory_does_not_grow_with_the_records(tmp_path):
    used = {}
    for number in (100, 5_000):
        file = tmp_path / f"{number}.jsonl"
        write_lines(file, ({**record, "chosen": "yes " * 1500} for record in prompts(number)))
        used[number] = peak_of("data_prep.preferences", "--input", file, "--out", tmp_path / f"out {number}")
    assert used[5_000] < used[100] + 10, used  # MiB; the file has 30, and ids and digests take 2
