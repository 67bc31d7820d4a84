"""Reading prompts, demonstrations and preference pairs: what a good file gives, and what a bad record is told."""

import pytest

from r1_aqa_repro.common.errors import Problem
from r1_aqa_repro.data.conversations import TextPrompt, read_pairs, read_prompts, read_sft
from tests.files import write_lines
from tests.hostile_texts import HOSTILE

CONVERT = "Convert the file with `python -m data_prep.preferences` and give the train.jsonl that it writes."
MESSAGE = '{"role": "user" or "assistant", "content": "..."}'
WRITE = f"Write every message as {MESSAGE}."
LISTED = f"as a list of messages {MESSAGE}."
EMPTY = "Give its text, or leave the record out."
CORRECT = "Correct the text."
GIVE_ID = "Give id as a text or an integer, or leave it out."
ROLES = "Only system, user, assistant are supported; leave the record out."
ONE_TURN = "What comes before the answer belongs into the prompt alone; an answer is one turn."
NOTHING = "Leave the pair out: it says nothing."
ORDER = "After an optional system message user and assistant alternate, from user to user."


def user(text="Why?"):
    return {"role": "user", "content": text}


def assistant(text="Because."):
    return {"role": "assistant", "content": text}


def system(text="Be brief."):
    return {"role": "system", "content": text}


def pair(**changed):
    return {"prompt": [user()], "chosen": [assistant("good")], "rejected": [assistant("bad")], **changed}


def test_prompts(tmp_path):
    conversation = [system(), user("1 + 1?"), assistant("2"), user("And 2 + 2?")]
    file = write_lines(
        tmp_path / "file.jsonl",
        [{"id": "a", "prompt": conversation, "task": "maths", "answer": "4"}, {"prompt": [user()]}],
    )
    read = read_prompts(file)
    assert read.problems == []
    assert read.records == [
        TextPrompt("a", conversation, {"task": "maths", "answer": "4"}),
        TextPrompt("line 2", [user()], {}),
    ]


def test_pairs(tmp_path):
    file = write_lines(
        tmp_path / "file.jsonl", [pair(id=7, margin=0.5, task="list"), "", pair(prompt=[system(), user()])]
    )
    read = read_pairs(file)
    assert read.problems == []
    assert read.records == [
        TextPrompt("7", [user()], {"margin": 0.5, "task": "list"}, {"chosen": "good", "rejected": "bad"}),
        # empty lines are none, but count
        TextPrompt("line 3", [system(), user()], {}, {"chosen": "good", "rejected": "bad"}),
    ]


def test_demonstrations(tmp_path):
    file = write_lines(
        tmp_path / "file.jsonl", [{"id": "a", "prompt": [user()], "completion": [assistant("Done.")], "task": "list"}]
    )
    assert read_sft(file).records == [TextPrompt("a", [user()], {"task": "list"}, {"completion": "Done."})]


def test_texts_come_through_as_they_are(tmp_path):
    texts = [*HOSTILE, "  spaces and lines around  \n\n"]
    file = write_lines(tmp_path / "file.jsonl", (pair(prompt=[user(text)], chosen=[assistant(text)]) for text in texts))
    assert [(record.messages, record.answers["chosen"]) for record in read_pairs(file).records] == [
        ([user(text)], text) for text in texts
    ]


LISTS = "expected prompt, chosen and rejected, each a list of messages"
OF_USER = "has messages of user, expected one message of assistant"
BAD_PAIRS = [
    ({"prompt": "Why?", "chosen": "good"}, f"{LISTS}; found chosen (str), prompt (str)", CONVERT),
    ({}, f"{LISTS}; found no keys", CONVERT),
    (pair(id=""), "id is ''", GIVE_ID),
    (pair(prompt=[]), "prompt is []", f"Give prompt {LISTED}"),
    (pair(prompt=["Why?"]), "prompt message 1 is str, expected an object", WRITE),
    (pair(prompt=[{"content": "Why?"}]), "prompt message 1 has no role, only ['content']", WRITE),
    (pair(prompt=[{"role": "tool", "content": "Why?"}]), "prompt message 1 has the unsupported role 'tool'", ROLES),
    (pair(prompt=[user(None)]), "prompt message 1 has None as content, expected a text", WRITE),
    (pair(prompt=[user(" \n")]), "prompt message 1 has an empty content", EMPTY),
    (pair(prompt=[user() | {"tool_calls": [1]}]), "prompt message 1 has the unsupported keys ['tool_calls']",
     WRITE + " Anything else would be lost."),
    (pair(prompt=[user("\ud83d")]), "'prompt' is no valid Unicode (half of a surrogate pair)", CORRECT),
    (pair(prompt=[assistant(), user()]), "prompt message 1 is of assistant, expected user", ORDER),
    (pair(prompt=[user(), user()]), "prompt message 2 is of user, expected assistant", ORDER),
    (pair(prompt=[user(), system(), user()]), "prompt message 2 is of system, expected assistant", ORDER),
    (pair(prompt=[system(), system(), user()]), "prompt message 2 is of system, expected user", ORDER),
    (pair(prompt=[user(), assistant()]), "prompt does not end with a message of user", ORDER),
    (pair(prompt=[system()]), "prompt does not end with a message of user", ORDER),
    (pair(chosen=[]), "chosen is []", f"Give chosen {LISTED}"),
    (pair(chosen=[assistant("")]), "chosen message 1 has an empty content", EMPTY),
    (pair(rejected=[user()]), f"rejected {OF_USER}", ONE_TURN),
    (pair(chosen=[assistant("bad\n")]), "chosen and rejected are identical", NOTHING),
]  # fmt: skip
BAD_DEMONSTRATIONS = [
    ({"completion": [assistant()]}, "prompt is absent or null", f"Give prompt {LISTED}"),
    ({"prompt": [user()]}, "completion is absent or null", f"Give completion {LISTED}"),
    ({"prompt": [user()], "completion": "Done."}, "completion is 'Done.'", f"Give completion {LISTED}"),
    ({"prompt": [user()], "completion": [user()]}, f"completion {OF_USER}", ONE_TURN),
]


@pytest.mark.parametrize(
    ("reader", "record", "what", "remedy"),
    [
        *((read_pairs, *bad) for bad in BAD_PAIRS),
        *((read_sft, *bad) for bad in BAD_DEMONSTRATIONS),
        (read_prompts, {"prompt": "Why?"}, "prompt is 'Why?'", f"Give prompt {LISTED}"),
    ],
)
def test_a_bad_record_is_named_and_the_others_are_read(tmp_path, reader, record, what, remedy):
    good = pair(completion=[assistant()])  # a record of any kind
    file = write_lines(tmp_path / "file.jsonl", [good, record, good])
    read = reader(file)
    assert len(read.records) == 2
    assert read.problems == [Problem(f"{file}:line 2", what, remedy)]
