"""Prepare text preference data for reward models and DPO: any usual format becomes TRL's messages with explicit prompt.

    python -m data_prep.preferences --input pairs.json --out data/preferences

takes a JSON list, JSON lines or a parquet file and writes train.jsonl and held_out.jsonl, one pair a line: `id`,
`prompt` (messages), `chosen` and `rejected` (one message of the assistant each). No prompt is in both files.
prep_report.json lists what was dropped. The formats, which --format auto tells apart record by record:

    trl       chosen, rejected and perhaps prompt: all texts, or all lists of {"role", "content"}; without a prompt
              it is what chosen and rejected have in common at the beginning
    sharegpt  conversations [{"from": "human", "value"}, ...], chosen {"from": "gpt", "value"}, rejected; perhaps system
    alpaca    instruction, input, chosen, rejected; perhaps system and history [[question, answer], ...]

Exit codes: 0 done; 1 failed, such as on a full disk; 2 refused, and nothing is written: a bad record, a format that is
unknown or ambiguous; 3 done, but bad records were left out (--skip-bad-records); 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from data_prep.avqa import raw_records
from data_prep.pipeline import REPORT, SETTINGS
from data_prep.split import HELD_OUT, TRAIN
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Failed, Problem, Refused, command, is_full_disk
from r1_aqa_repro.common.files import sha256_of, write_json
from r1_aqa_repro.data.answers import fold
from r1_aqa_repro.data.conversations import (
    Message,
    PreferencePair,
    Spelling,
    answer,
    answer_from,
    id_of,
    messages_from,
    require_difference,
    require_turns,
)
from r1_aqa_repro.data.records import BadRecord, require_object

AUTO = "auto"
WANTED = {
    "trl": "trl: chosen and rejected, perhaps prompt",
    "sharegpt": "sharegpt: conversations, chosen, rejected, perhaps system",
    "alpaca": "alpaca: instruction, chosen, rejected, perhaps input, system, history",
}
SHAREGPT = Spelling("from", "value", "system", "human", "gpt")
TEXT_EXTRACTED = "trl texts, prompt extracted"
SCORES = ("chosen_score", "rejected_score", "margin")
BAD, DUPLICATE, CONTRADICTION = "bad record", "duplicate", "contradiction"

_COMMAND = "data_prep.preferences"
_PROMPT_KEYS = {"trl": "prompt", "sharegpt": "conversations", "alpaca": "instruction"}
_USED = {
    "trl": {"prompt"},
    "sharegpt": {"conversations", "system"},
    "alpaca": {"instruction", "input", "system", "history"},
}
# what belongs to the conversation wherever it stands: a format that does not know the key would lose it
_CONTEXT = {"question", "tools", "images", "videos", "audios"}.union(*_USED.values())
_KEPT = ("id", "task", *SCORES)
_FILES = (SETTINGS, f"{TRAIN}.jsonl", f"{HELD_OUT}.jsonl", REPORT)
_SHOWN = 3  # dropped records of each reason in the summary


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    started = time.perf_counter()
    source, out = arguments.input, arguments.out.resolve()
    if not source.is_file():
        raise Refused.because(str(source), "there is no such file", "Give a JSON list, JSON lines or a parquet file.")
    try:
        settings = {
            "command": _COMMAND,
            "input": f"{source.name}, sha256 {sha256_of(source)}",
            "format": arguments.format,
            "held_out": arguments.held_out,
            "seed": arguments.seed,
        }
        _require_own(out, source, settings, arguments.overwrite)
        # the pairs wait on the disk until all are known: a later one may contradict an earlier one
        nearest = next(folder for folder in (out, *out.parents) if folder.is_dir())
        with tempfile.TemporaryFile(dir=nearest) as waiting:
            sifted = _sift(convert(source, arguments.format), waiting, arguments.held_out, arguments.seed)
            _require_pairs(sifted, source, arguments.skip_bad_records)
            report = {**sifted.facts(), "seconds": round(time.perf_counter() - started, 3)}
            waiting.seek(0)
            _write(out, zip(waiting, sifted.sides, strict=True), settings, report)
    except OSError as error:
        why = "the disk is full" if is_full_disk(error) else error.strerror or str(error)
        raise Failed(
            f"{error.filename or out}: {why}. Nothing is left half written: give the same command again."
        ) from error
    _tell(report, out)
    return EXIT_LOSSES if sifted.problems else EXIT_DONE


@dataclass(frozen=True)
class Converted:
    """A pair: where it stood, how it was written (`trl texts`, `sharegpt`, ...), and which keys were left out."""

    where: str
    pair: PreferencePair
    shape: str
    left_out: list[str]


@dataclass(frozen=True)
class Bad:
    """A record that is no pair: its id, or its place where it has none, and what is wrong."""

    id: str
    problem: Problem


def convert(source: Path, format_name: str = AUTO) -> Iterator[Converted | Bad]:
    """Stream the records of a file as pairs. Ids are not compared; a pair without one is named by its place.

    Raises:
        Refused: the file as a whole cannot be read.
    """
    for where, raw in raw_records(source):
        place = f"{source.name}:{where}"
        try:
            if isinstance(raw, Exception):
                raise BadRecord(str(raw), "Each line must be one JSON object.")
            record = require_object(raw)
            name = _format_of(record) if format_name == AUTO else format_name
            pair, shape = _pair(record, name, place)
            left_out = sorted(set(record) - _USED[name] - {"chosen", "rejected", *_KEPT})
            yield Converted(f"{source}:{where}", pair, shape, left_out)
        except BadRecord as bad:
            yield Bad(_id_of_bad(raw, place), Problem(f"{source}:{where}", bad.what, bad.remedy))


def _id_of_bad(raw: Any, place: str) -> str:
    try:
        return id_of(require_object(raw), place)
    except BadRecord:
        return place


def _pair(record: dict[str, Any], name: str, place: str) -> tuple[PreferencePair, str]:
    """The pair of a record in a known format, and how exactly it was written."""
    missing = [key for key in ("chosen", "rejected") if record.get(key) is None]
    if missing:
        raise BadRecord(f"{' and '.join(missing)} absent or null, only {sorted(record)}", f"Expected {WANTED[name]}.")
    lost = sorted(key for key in _CONTEXT - _USED[name] if record.get(key))
    if lost:
        what = f"{', '.join(lost)} has no place in the format {name} and would be lost"
        raise BadRecord(what, f"Expected {WANTED[name]}. Put what matters into the prompt and remove the key.")
    shape, prompt, chosen, rejected = _CONVERTERS[name](record)
    require_difference(chosen.strip(), rejected.strip())  # a preference for a line break is none
    columns = {key: _column(record, key) for key in _KEPT[1:] if record.get(key) is not None}
    return PreferencePair(id_of(record, place), prompt, chosen, rejected, columns), shape


def _format_of(record: dict[str, Any]) -> str:
    """The format whose keys a record has.

    Raises:
        BadRecord: none has them, or more than one.
    """
    all_wanted = f"Known are {'; '.join(WANTED.values())}."
    if "chosen" not in record or "rejected" not in record:
        raise BadRecord(f"unknown format with the keys {sorted(record)}", all_wanted)
    found = [name for name, key in _PROMPT_KEYS.items() if record.get(key) is not None]
    if len(found) > 1:
        what = f"ambiguous format: the keys {sorted(record)} are those of {' and '.join(found)}"
        raise BadRecord(what, f"{all_wanted} Remove what does not belong there.")
    return found[0] if found else "trl"


_Parts = tuple[str, list[Message], str, str]  # shape, prompt, chosen, rejected


def _from_trl(record: dict[str, Any]) -> _Parts:
    prompt, chosen, rejected = (record.get(key) for key in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, list):
        chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
        if prompt is not None:
            return "trl texts", [_user(_text(prompt, "prompt"))], chosen, rejected
        end = _end_of_texts(chosen, rejected)
        answers = _text(chosen[end:], "the answer in chosen"), _text(rejected[end:], "the answer in rejected")
        return TEXT_EXTRACTED, [_user(chosen[:end])], *answers
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        kinds = ", ".join(f"{key} is {_kind(record.get(key))}" for key in ("prompt", "chosen", "rejected"))
        raise BadRecord(kinds, "Expected all three as texts, or all as lists of messages; prompt may be absent.")
    if isinstance(prompt, list):
        messages = messages_from(prompt, "prompt")
        require_turns(messages, "prompt")
        return "trl messages", messages, answer_from(chosen, "chosen"), answer_from(rejected, "rejected")
    end = _end_of_messages(messages_from(chosen, "chosen"), messages_from(rejected, "rejected"))
    messages = messages_from(chosen[:end], "the common beginning of chosen and rejected")
    require_turns(messages, "the common beginning of chosen and rejected")
    # as in UltraFeedback: the question once more, as a text beside the conversations that hold it
    if prompt is not None and _text(prompt, "prompt") not in (message["content"] for message in messages):
        what = "prompt is none of the messages that chosen and rejected have in common"
        raise BadRecord(what, "Correct it, or remove it.")
    answers = answer_from(chosen[end:], "the answer in chosen"), answer_from(rejected[end:], "the answer in rejected")
    return "trl messages, prompt extracted", messages, *answers


def _end_of_texts(chosen: str, rejected: str) -> int:
    """Where the common beginning of two texts ends, as TRL's `extract_prompt` has it: one space at its end is the
    answers'.

    Raises:
        BadRecord: there is no such beginning, or nothing else.
    """
    require_difference(chosen, rejected)
    end = _first_difference(chosen, rejected)
    remedy = "Give the prompt as a key of its own."
    if end == min(len(chosen), len(rejected)):
        what = "one of chosen and rejected is the beginning of the other, so nothing tells where the answers begin"
        raise BadRecord(what, remedy)
    end -= chosen[:end].endswith(" ")
    if not chosen[:end].strip():
        raise BadRecord("chosen and rejected have no common prompt: they begin differently", remedy)
    return end


def _end_of_messages(chosen: list[Message], rejected: list[Message]) -> int:
    """Where the common beginning of two conversations ends: before the answers.

    Raises:
        BadRecord: they do not differ, or not first in a message of the assistant.
    """
    require_difference(chosen, rejected)
    end = _first_difference(chosen, rejected)
    if end == min(len(chosen), len(rejected)):
        what = "one of chosen and rejected goes on where the other ends"
        raise BadRecord(what, "Both must end with an answer to the same message.")
    remedy = "Everything before the answers must be the same in both."
    if {chosen[end]["role"], rejected[end]["role"]} != {"assistant"}:
        raise BadRecord(f"chosen and rejected answer different prompts: message {end + 1} differs", remedy)
    if end == 0:
        raise BadRecord("chosen and rejected have no common prompt: they begin with the answers", remedy)
    return end


def _first_difference(one: str | list[Message], other: str | list[Message]) -> int:
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)


def _from_sharegpt(record: dict[str, Any]) -> _Parts:
    messages = messages_from(record.get("conversations"), "conversations", SHAREGPT)
    require_turns(messages, "conversations", SHAREGPT)
    if record.get("system"):
        if messages[0]["role"] == "system":
            raise BadRecord("system is given twice, as a key and as the first of conversations", "Remove one.")
        messages = [_system(record), *messages]
    for key in ("chosen", "rejected"):
        if not isinstance(record[key], dict):
            wanted = f'Give {key} as {{"from": "gpt", "value": "..."}}.'
            raise BadRecord(f"{key} is {_kind(record[key])}, expected an object", wanted)
    chosen, rejected = (answer_from([record[key]], key, SHAREGPT) for key in ("chosen", "rejected"))
    return "sharegpt", messages, chosen, rejected


def _from_alpaca(record: dict[str, Any]) -> _Parts:
    """Instruction and input are joined by a line break, and earlier turns come before them, as in LLaMA-Factory."""
    messages = [_system(record)] if record.get("system") else []
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        what = f"history is {history!r:.60}, expected a list of questions with their answers"
        raise BadRecord(what, "Give history as [[question, answer], ...].")
    for number, (question, reply) in enumerate(history, start=1):
        messages.append(_user(_text(question, f"question {number} of history")))
        messages += answer(_text(reply, f"answer {number} of history"))
    asked = [_text(record.get("instruction"), "instruction")]
    if record.get("input"):
        asked.append(_text(record["input"], "input"))
    answers = _text(record["chosen"], "chosen"), _text(record["rejected"], "rejected")
    return "alpaca", [*messages, _user("\n".join(asked))], *answers


_CONVERTERS: dict[str, Callable[[dict[str, Any]], _Parts]] = {
    "trl": _from_trl,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
}
FORMATS = (AUTO, *_CONVERTERS)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _system(record: dict[str, Any]) -> Message:
    return {"role": "system", "content": _text(record["system"], "system")}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{name} is {_kind(value)}, expected a text", f"Give {name} as a text.")
    if not value.strip():
        raise BadRecord(f"{name} is empty", "Give its text, or leave the record out.")
    return value


def _column(record: dict[str, Any], key: str) -> str | float:
    """A key that is kept beside the pair: `task` is a text, the others are numbers."""
    value = record[key]
    if key not in SCORES:
        return _text(value, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRecord(
            f"{key} is {value!r:.60}, expected a number", f"Give {key} as a finite number, or leave it out."
        )
    return value


def _kind(value: Any) -> str:
    return "absent or null" if value is None else type(value).__name__


def is_held_out(prompt: list[Message], fraction: float, seed: int) -> bool:
    """Whether pairs of this prompt are held out, with a probability of `fraction` over the seeds.

    It depends on the seed and on the user's first message, case and white space aside, and on nothing else: more data
    moves no prompt to the other side, and the later turns of a conversation stay with the earlier ones.
    """
    first = next(message["content"] for message in prompt if message["role"] == "user")
    draw = hashlib.sha256(f"{seed} {fold(first)}".encode()).digest()
    return int.from_bytes(draw[:8], "big") < fraction * 2**64


@dataclass
class _Sifted:
    """What becomes of the records.

    `sides` says of each pair that waits, in order, where it goes: `TRAIN`, `HELD_OUT`, or, dropped, None. `dropped` has
    an id and `details` a text for each record that was dropped, by reason.
    """

    records_in: int = 0
    sides: list[str | None] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, record_id: str, detail: str) -> None:
        self.dropped.setdefault(reason, []).append(record_id)
        self.details.setdefault(reason, []).append(detail)

    def facts(self) -> dict[str, Any]:
        """What the report says beside the time it took."""
        train, held_out = self.sides.count(TRAIN), self.sides.count(HELD_OUT)
        return {
            "records_in": self.records_in,
            "kept": train + held_out,
            TRAIN: train,
            HELD_OUT: held_out,
            "dropped": self.dropped,
            "formats": dict(sorted(self.shapes.items())),
            "keys_left_out": dict(sorted(self.left_out.items())),
            "details": self.details,
        }


def _sift(records: Iterable[Converted | Bad], waiting: IO[bytes], fraction: float, seed: int) -> _Sifted:
    """Write every pair to `waiting`, one a line, and find out what becomes of it.

    Of the same pair twice the first stays. Where the same two answers are preferred both ways round, none of these
    pairs stays: together they say nothing.
    """
    sifted = _Sifted()
    seen: dict[str, tuple[bytes, str]] = {}  # by id: the pair, and where it stands
    pairs: list[tuple[str, bytes, bytes, str]] = []  # id, the pair, the pair the other way round, side
    for record in tqdm(records, unit=" records", disable=None):
        sifted.records_in += 1
        if isinstance(record, Converted):
            pair, key = record.pair, _digest(record.pair)
            known, where = seen.setdefault(pair.id, (key, record.where))
            if known == key:
                swapped = _digest(replace(pair, chosen=pair.rejected, rejected=pair.chosen))
                side = HELD_OUT if is_held_out(pair.prompt, fraction, seed) else TRAIN
                pairs.append((pair.id, key, swapped, side))
                waiting.write(_line(pair))
                sifted.shapes[record.shape] += 1
                sifted.left_out.update(record.left_out)
                continue
            record = Bad(
                pair.id, Problem(record.where, f"id {pair.id!r} was already used at {where}", "Make ids unique.")
            )
        sifted.problems.append(record.problem)
        sifted.drop(BAD, record.id, str(record.problem))

    first_of: dict[bytes, int] = {}
    for index, (_, key, _, _) in enumerate(pairs):
        first_of.setdefault(key, index)
    for index, (pair_id, key, swapped, side) in enumerate(pairs):
        if swapped in first_of:
            other = pairs[first_of[swapped]][0]
            sifted.drop(CONTRADICTION, pair_id, f"{pair_id}: {other} prefers the other one of the same two answers")
        elif first_of[key] != index:
            sifted.drop(DUPLICATE, pair_id, f"{pair_id}: the same pair as {pairs[first_of[key]][0]}")
        kept = swapped not in first_of and first_of[key] == index
        sifted.sides.append(side if kept else None)
    return sifted


def _digest(pair: PreferencePair) -> bytes:
    content = json.dumps([pair.prompt, pair.chosen, pair.rejected])
    return hashlib.sha256(content.encode()).digest()


def _line(pair: PreferencePair) -> bytes:
    answers = {"chosen": answer(pair.chosen), "rejected": answer(pair.rejected)}
    line = {"id": pair.id, "prompt": pair.prompt, **answers, **pair.columns}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _require_pairs(sifted: _Sifted, source: Path, skip_bad_records: bool) -> None:
    """Refuse bad records unless they are to be skipped, and whatever would leave nothing to train on."""
    if sifted.problems and not (skip_bad_records and any(sifted.sides)):
        raise Refused(sifted.problems)
    if not sifted.records_in:
        raise Refused.because(str(source), "the file holds no records", "Check that it was written completely.")
    if not any(sifted.sides):
        what = f"none of its {sifted.records_in:,} pairs is left: they contradict each other"
        raise Refused.because(str(source), what, "Correct which of the answers is preferred.")
    if TRAIN not in sifted.sides:
        what = f"all of its {sifted.records_in:,} pairs would be held out"
        raise Refused.because(str(source), what, "Give a smaller --held-out, another --seed, or more data.")


def _require_own(out: Path, source: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Check that nothing is overwritten but what this command made with the same settings, or may be overwritten.

    Raises:
        Refused: it would be.
    """
    remedy = "Give another --out, or --overwrite."
    if out.exists() and not out.is_dir():
        raise Refused.because(str(out), "it is not a folder", "Give another --out.")
    if source.resolve() in (out / name for name in _FILES):
        raise Refused.because(str(source), "the result would overwrite it", "Give another --out.")
    file = out / SETTINGS
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if before is not None and before.get("command") != _COMMAND:
        raise Refused.because(str(out), f"it belongs to {before.get('command')}", "Give another --out.")
    if overwrite:
        return
    if before is None:
        found = [name for name in _FILES if (out / name).exists()]
        if found:
            raise Refused.because(str(out), f"it holds {', '.join(found)} from elsewhere", remedy)
        return
    differing = [
        Problem(str(file), f"{key} was {before.get(key)!r}, now it is {value!r}", remedy)
        for key, value in settings.items()
        if before.get(key) != value
    ]
    if differing:
        raise Refused(differing)


def _write(
    out: Path, lines: Iterable[tuple[bytes, str | None]], settings: dict[str, Any], report: dict[str, Any]
) -> None:
    """Write everything elsewhere and move it to `out` when it is complete: a new folder appears at once, in an old one
    the report comes last."""
    is_new = not out.exists()
    made = out.with_name(f".{out.name}.partial") if is_new else out / ".partial"
    shutil.rmtree(made, ignore_errors=True)  # of a run that was killed
    made.mkdir(parents=True)
    try:
        with open(made / f"{TRAIN}.jsonl", "wb") as train, open(made / f"{HELD_OUT}.jsonl", "wb") as held_out:
            files = {TRAIN: train, HELD_OUT: held_out}
            for line, side in lines:
                if side is not None:
                    files[side].write(line)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        write_json(made / SETTINGS, settings)
        write_json(made / REPORT, report)
        if is_new:
            os.rename(made, out)
        else:
            (out / REPORT).unlink(missing_ok=True)
            for name in _FILES:
                os.replace(made / name, out / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _tell(report: dict[str, Any], out: Path) -> None:
    """A few lines for the person at the terminal."""
    say(
        f"{report['kept']:,} of {report['records_in']:,} records kept, {report[TRAIN]:,} to train on and "
        f"{report[HELD_OUT]:,} held out: {out / f'{TRAIN}.jsonl'}, {out / f'{HELD_OUT}.jsonl'}"
    )
    say("  " + ", ".join(f"{shape}: {number:,}" for shape, number in report["formats"].items()))
    for reason, details in report["details"].items():
        say(f"  dropped, {reason}: {len(details):,}")
        for detail in details[:_SHOWN]:
            say(f"    {detail}")
        if len(details) > _SHOWN:
            say(f"    ... and {len(details) - _SHOWN:,} more, all listed in {out / REPORT}")
    if report["keys_left_out"]:
        listed = ", ".join(f"{key!a} ({number:,})" for key, number in report["keys_left_out"].items())
        say(f"  keys left out: {listed}")
    if extracted := report["formats"].get(TEXT_EXTRACTED):
        say(
            f"warning: {extracted:,} prompts are what the two texts of a pair have in common at their beginning, which "
            "may reach into the answers: give the prompt as a key of its own where it is known"
        )
    if not report[HELD_OUT]:
        say("warning: no pair is held out; a greater --held-out or another --seed may hold some out")


def _fraction(text: str) -> float:
    fraction = float(text)
    if not 0 <= fraction < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction from 0 to below 1")
    return fraction


def _parser() -> Options:
    parser = Options(__doc__)
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="FILE", help="the pairs: a JSON list, JSON lines or parquet")
    add("--format", choices=FORMATS, default=AUTO, help=f"of the pairs (default: {AUTO}, by the keys of each record)")
    add("--out", required=True, type=Path, metavar="DIR", help="where to write")
    add("--held-out", type=_fraction, default=0.05, metavar="FRACTION", help="of the prompts (default: 0.05)")
    add("--seed", type=int, default=0, metavar="N", help="which prompts are held out (default: 0)")
    add("--skip-bad-records", action="store_true", help="leave bad records out, list them and exit with 3")
    add("--overwrite", action="store_true", help="replace what another input or other settings gave in --out")
    return parser


if __name__ == "__main__":
    sys.exit(main(None))
