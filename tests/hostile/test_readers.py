"""Generated files for every reader: whatever they hold, it gives records that can be written, or says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.preference_formats import convert
from data_prep.question_formats import published
from eval.predictions import predict
from eval.score_predictions import read_predictions
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.record_file import RecordFile
from r1_aqa_repro.data.conversations import read_pairs, read_prompts, read_sft
from r1_aqa_repro.data.questions import AudioQuestion, manifest_line, read_questions
from r1_aqa_repro.data.records import Read, Rejected, parse_records
from r1_aqa_repro.data.yaml_file import read_yaml

Value = Any
USER, ASSISTANT = ({"role": role, "content": "Why? É 🎵"} for role in ("user", "assistant"))
QUESTION = AudioQuestion("q0", Path("/clips/a.wav"), "What is heard?", ("a dog", "a cat"), "a cat")
MANIFEST = json.loads(manifest_line(QUESTION, "audio/a.wav")) | {"task": "sound", "flags": ["missing_audio"]}
AVQA = {"id": 3, "audio_path": "a.wav", "question_text": "What?", "multi_choice": ["a", "b"], "answer": 1,
        "video_name": "v", "dataset_name": "AVQA"}  # fmt: skip
MMAU = {"id": "q0", "audio_id": "./a.wav", "question": "What is heard?", "choices": ["a dog", "a cat"],
        "answer": "a cat", "task": "sound", "sub-category": ["x"], "difficulty": "easy"}  # fmt: skip
PAIR = {"id": "a", "prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT | {"content": "No."}], "margin": 0.5}
ALPACA = {"instruction": "Say", "input": "it", "chosen": "yes", "rejected": "no", "history": [["a", "b"]]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"}}  # fmt: skip
AUDIOMCQ = {"source_dataset": "Clotho", "id": "7", "question_type": "sound", "audio_path": "Clotho/a.wav",
            "question": "What?", "choices": ["a", "b"], "answer": "b", "audio-contribution": "strong"}  # fmt: skip
DCASE = {"id": "q", "audio_url": "a.wav", "question": "What?", "choice": ["A. a", "B. b"], "answer": "B. b"}
SWIFT = {"messages": [{"role": "user", "content": "<audio>What?\nA. a\nB. b"}], "audios": ["a.wav"], "solution": "B"}
CONFIG = """# a config
learning_rate: 1.0e-6
max_steps: &steps 500
reward_funcs: [accuracy, format]
parts: {a: *steps, b: null, c: "x\\u00e9"}
text: |
  lines
  of text
when: 2026-11-29
"""


def can_be_written(records: Iterable[Value]) -> None:
    for record in records:
        json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False, default=str).encode()


def read(reader: Callable[[Path], Read[Any]]) -> Callable[[Path], None]:
    def reading(file: Path) -> None:
        found = reader(file)
        can_be_written(vars(record) for record in found.records)
        for problem in found.problems:
            assert len(str(problem)) < 4_000 and visible_line(problem) == str(problem)

    return reading


def published_questions(file: Path) -> None:
    found = [one for _, one in parse_records(file, partial(published, file=file), one_object=True)]
    can_be_written(vars(one.question) for one in found if not isinstance(one, Rejected))
    assert all(visible_line(str(one.problem)) == str(one.problem) for one in found if isinstance(one, Rejected))


def recorded(file: Path) -> None:
    with RecordFile(file, "Choose another.") as records:
        can_be_written(records.read())


# each with what it reads, and files of that kind
READERS: dict[str, tuple[Callable[[Path], Any], list[Value]]] = {
    "manifest": (read(read_questions), [MANIFEST, AVQA]),
    "mmau": (read(lambda file: read_questions(file, "/clips")), [MMAU]),
    "prompts": (read(read_prompts), [{"id": "a", "prompt": [USER], "task": "x"}]),
    "demonstrations": (read(read_sft), [{"id": "a", "prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}]),
    "pairs": (read(read_pairs), [PAIR]),
    "preferences": (lambda file: list(convert(file)), [PAIR, ALPACA, SHAREGPT, {"chosen": "a b", "rejected": "a c"}]),
    "questions of others": (published_questions, [AUDIOMCQ, DCASE, SWIFT]),
    "predictions": (
        lambda file: can_be_written(one.to_record() for one in read_predictions(file, [QUESTION]).values()),
        [{"id": "q0", "model_output": "a cat"}, predict(QUESTION, "a cat", "answer", "s").to_record()],
    ),
    "recorded": (recorded, [predict(QUESTION, "a cat", "answer", "s").to_record()]),
    "yaml": (lambda file: can_be_written([read_yaml(str(file))]), [CONFIG]),
}
PIECES = [
    "{", "}", "[", "]", '"', ",", ":", "\\", "\n", "\r", "\0", "null", "true", "NaN", "-Infinity", "1e999", "9" * 5000,
    "0x1F", "010", "1:30", "[" * 300, '{"a":' * 300, r"\ud800", r"\u0000", "\ufeff", "\u2028", "\x1b[2J", "é", "🎵",
    "../", "*a", "&a ", "<<: *a", "!!python/name:os.system ", "!!int ", "? ", "- ", "--- ", "|", "> ", "#", "%", "@",
    "`", "=", '"id": "q0", ', '"id": 1e400, ', '"answer": [[1]], ', "PAR1",
]  # fmt: skip
KEYS = sorted({key for _, files in READERS.values() for one in files if isinstance(one, dict) for key in one})
TEXTS = st.text("ab é🎵\0\ud800\n\x1b<|>", max_size=6)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), TEXTS,
    st.sampled_from(["q0", "user", "assistant", "a cat", "..", ""]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def files(draw: st.DrawFn, valid: list[Value]) -> bytes:
    """Random bytes, or records of the right kind with other values, or a good file with pieces changed."""
    kind = draw(st.sampled_from(["bytes", "values", "changed", "changed"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    records = draw(st.lists(st.sampled_from(valid), min_size=1, max_size=3))
    if kind == "values" and not isinstance(valid[0], str):
        some_keys = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)
        records = [one | draw(some_keys) for one in records]
    texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=draw(st.booleans())) for one in records]
    content = f"[{','.join(texts)}]" if draw(st.booleans()) else "\n".join(texts)
    for _ in range(draw(st.integers(0, 3)) if kind == "changed" else 0):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 0, 1, 5, 50]))
        content = content[:start] + draw(st.sampled_from(PIECES)) + content[end:]
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"]))
    return content.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_records_or_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    reader, valid = READERS[name]
    file = tmp_path / "file"
    refused, examples = 0, 0

    @settings(max_examples=225, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(files(valid))
    def one(content: bytes) -> None:
        nonlocal refused, examples
        file.write_bytes(content)
        examples += 1
        try:
            reader(file)
        except Refused as refusal:
            refused += 1
            assert all(len(str(one)) < 4_000 and visible_line(one) == str(one) for one in refusal.problems)

    one()
    assert examples >= 225
    assert name == "recorded" or 10 < refused < examples  # both kinds are among them
