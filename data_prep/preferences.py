"""Prepare text preference data for reward models and DPO: any usual format becomes TRL's messages with explicit prompt.

    python -m data_prep.preferences --input pairs.json --out data/preferences

takes a JSON list, JSON lines or a parquet file and writes train.jsonl and held_out.jsonl, one pair a line: `id`,
`prompt` (messages), `chosen` and `rejected` (one message of the assistant each). No prompt is in both files.
prep_report.json lists what was dropped. The formats, which --format auto tells apart record by record:

    trl       chosen, rejected and perhaps prompt: all texts, or all lists of {"role", "content"}; without a prompt
              it is what chosen and rejected have in common at the beginning. Texts that are whole dialogues, as in
              HH-RLHF ("\\n\\nHuman: ...\\n\\nAssistant: ..."), are split into turns
    sharegpt  conversations [{"from": "human", "value"}, ...], chosen {"from": "gpt", "value"}, rejected; perhaps system
    alpaca    instruction, input, chosen, rejected; perhaps system and history [[question, answer], ...]

Exit codes: 0 done; 1 failed, such as on a full disk; 2 refused, and nothing is written: a bad record, a format that is
unknown or ambiguous; 3 done, but bad records were left out (--skip-bad-records); 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from data_prep.folder import REMEDY, REPORT, SETTINGS, Account, check_own
from data_prep.preference_formats import AUTO, FORMATS, TEXT_EXTRACTED, Converted, convert
from data_prep.split import HELD_OUT, TRAIN
from r1_aqa_repro.common.claim import claim
from r1_aqa_repro.common.console import Options, not_negative, say
from r1_aqa_repro.common.errors import (
    EXIT_DONE,
    EXIT_LOSSES,
    Problem,
    Refused,
    command,
    existing_folder,
    failing_plainly,
)
from r1_aqa_repro.common.files import (
    LOCK,
    as_lines,
    output_folder,
    sha256_of,
    sole_use,
    unreadable,
    whole_file,
    write_json,
)
from r1_aqa_repro.data.answers import fold
from r1_aqa_repro.data.conversations import Message, TextPrompt
from r1_aqa_repro.data.records import Rejected, no_records

BAD, DUPLICATE, CONTRADICTION = "bad record", "duplicate", "contradiction"

_COMMAND = "data_prep.preferences"


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    started = time.perf_counter()
    source, out = arguments.input, arguments.out.resolve()
    if (reason := unreadable(source)) is not None:
        raise Refused.because(str(source), reason, "Give a JSON list, JSON lines or a parquet file.")
    lock = sole_use(out / LOCK, REMEDY)
    with lock, failing_plainly(out, "No file is half written: mend that and give the same command again."):
        settings = {
            "command": _COMMAND,
            "input": f"{source.name}, sha256 {sha256_of(source)}",
            "format": arguments.format,
            "held_out": arguments.held_out,
            "seed": arguments.seed,
        }
        check_own(out, settings, [out / f"{TRAIN}.jsonl", out / f"{HELD_OUT}.jsonl", out / REPORT])
        # the pairs wait on the disk until all are known: a later one may contradict an earlier one
        with tempfile.TemporaryFile(dir=existing_folder(out)) as waiting:
            sifted = _sift(convert(source, arguments.format), waiting, arguments.held_out, arguments.seed)
            _require_pairs(sifted, source, arguments.skip_bad_records)
            claim(out / SETTINGS, settings, REMEDY)
            waiting.seek(0)
            with whole_file(out / f"{TRAIN}.jsonl") as train, whole_file(out / f"{HELD_OUT}.jsonl") as held_out:
                for line, side in zip(waiting, sifted.sides, strict=True):
                    if side is not None:
                        (train if side == TRAIN else held_out).write(line)
        write_json(out / REPORT, {**sifted.facts(), "seconds": round(time.perf_counter() - started, 3)})
    _tell(sifted, out)
    return EXIT_LOSSES if sifted.problems else EXIT_DONE


def is_held_out(prompt: list[Message], fraction: float, seed: int) -> bool:
    """Whether pairs of this prompt are held out, with a probability of `fraction` over the seeds.

    It depends on the seed and on the user's first message, case and white space aside, and on nothing else: more data
    moves no prompt to the other side, and the later turns of a conversation stay with the earlier ones.
    """
    first = next(message["content"] for message in prompt if message["role"] == "user")
    draw = hashlib.sha256(f"{seed} {fold(first)}".encode()).digest()
    return int.from_bytes(draw[:8], "big") < fraction * 2**64


@dataclass
class _Sifted(Account):
    """What becomes of the records.

    Attributes:
        sides: of each pair that waits, in order: `TRAIN`, `HELD_OUT`, or None if it is dropped.
        problems: of bad records.
        formats: number of pairs by how they were written.
        keys_left_out: number of pairs by key.
    """

    sides: list[str | None] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    keys_left_out: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, Any]:
        """What the report says beside the time it took."""
        return {
            "records_in": self.records_in,
            "kept": self.kept,
            TRAIN: self.sides.count(TRAIN),
            HELD_OUT: self.sides.count(HELD_OUT),
            "dropped": self.dropped,
            "formats": dict(sorted(self.formats.items())),
            "keys_left_out": dict(sorted(self.keys_left_out.items())),
            "details": self.details,
        }


def _sift(records: Iterable[Converted | Rejected], waiting: IO[bytes], fraction: float, seed: int) -> _Sifted:
    """Write every pair to `waiting`, one a line, and find out what becomes of it.

    Of equal pairs the first stays. If the same two answers are preferred both ways round, all of these pairs go:
    together they say nothing.
    """
    sifted = _Sifted()
    seen: dict[str, tuple[bytes, str]] = {}  # by id: the pair, and where it stands
    pairs: list[tuple[str, bytes, bytes, str]] = []  # id, the pair, the pair the other way round, side
    for record in tqdm(records, unit=" records", disable=None):
        sifted.records_in += 1
        if isinstance(record, Converted):
            pair, texts = record.pair, [*record.pair.answers.values()]
            key, swapped = (_digest(pair.messages, answers) for answers in (texts, texts[::-1]))
            known, where = seen.setdefault(pair.id, (key, record.where))
            if known == key:
                side = HELD_OUT if is_held_out(pair.messages, fraction, seed) else TRAIN
                pairs.append((pair.id, key, swapped, side))
                waiting.write(_line(pair))
                sifted.formats[record.shape] += 1
                sifted.keys_left_out.update(record.left_out)
                continue
            problem = Problem(record.where, f"id {pair.id!r} was already used at {where}", "Make ids unique.")
            record = Rejected(pair.id, None, problem)
        sifted.problems.append(record.problem)
        sifted.lose(record.id, BAD, str(record.problem))

    sifted.sides = [None] * len(pairs)
    first_of: dict[bytes, int] = {}
    for index, (_, key, _, _) in enumerate(pairs):
        first_of.setdefault(key, index)
    for index, (pair_id, key, swapped, side) in enumerate(pairs):
        if swapped in first_of:
            other = pairs[first_of[swapped]][0]
            sifted.lose(pair_id, CONTRADICTION, f"{other} prefers the other one of the same two answers")
        elif first_of[key] != index:
            sifted.lose(pair_id, DUPLICATE, f"the same pair as {pairs[first_of[key]][0]}")
        else:
            sifted.sides[index], sifted.kept = side, sifted.kept + 1
    return sifted


def _digest(messages: list[Message], answers: list[str]) -> bytes:
    return hashlib.sha256(json.dumps([messages, *answers]).encode()).digest()


def _line(pair: TextPrompt) -> bytes:
    line = {"id": pair.id, **pair.row(), **pair.columns}
    return as_lines([line]).encode()


def _require_pairs(sifted: _Sifted, source: Path, skip_bad_records: bool) -> None:
    """Refuse bad records unless they are to be skipped, and whatever would leave nothing to train on."""
    if sifted.problems and not (skip_bad_records and sifted.kept):
        raise Refused(sifted.problems)
    if not sifted.records_in:
        raise no_records(source)
    if not sifted.kept:
        what = f"its {sifted.records_in:,} pairs contradict each other, so that no pair is left"
        raise Refused.because(str(source), what, "Correct which of the answers is preferred.")
    if TRAIN not in sifted.sides:
        what = f"all of its {sifted.records_in:,} pairs would be held out"
        raise Refused.because(str(source), what, "Give a smaller --held-out, another --seed, or more data.")


def _tell(sifted: _Sifted, out: Path) -> None:
    """A few lines for the person at the terminal."""
    facts = sifted.facts()
    say(
        f"{sifted.kept:,} of {sifted.records_in:,} records kept, {facts[TRAIN]:,} to train on and "
        f"{facts[HELD_OUT]:,} held out: {out / f'{TRAIN}.jsonl'}, {out / f'{HELD_OUT}.jsonl'}"
    )
    say("  " + ", ".join(f"{shape}: {number:,}" for shape, number in facts["formats"].items()))
    for line in sifted.losses(out):
        say(line)
    if sifted.keys_left_out:
        listed = ", ".join(f"{key!a} ({number:,})" for key, number in facts["keys_left_out"].items())
        say(f"  keys left out: {listed}")
    if extracted := sifted.formats[TEXT_EXTRACTED]:
        say(
            f"warning: {extracted:,} prompts are what the two texts of a pair have in common at their beginning, which "
            "may reach into the answers: give the prompt as a key of its own if it is known"
        )
    if not facts[HELD_OUT]:
        say("warning: no pair is held out; a greater --held-out or another --seed may hold some out")


def _fraction(text: str) -> float:
    fraction = float(text)
    if not 0 <= fraction < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction from 0 to below 1")
    return fraction


def _parser() -> Options:
    parser = Options(__doc__, f"python -m {_COMMAND}")
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="FILE", help="the pairs: a JSON list, JSON lines or parquet")
    add("--format", choices=FORMATS, default=AUTO, help=f"of the pairs (default: {AUTO}, by the keys of each record)")
    add("--out", required=True, type=output_folder, metavar="DIR", help="where to write")
    add("--held-out", type=_fraction, default=0.05, metavar="FRACTION", help="of the prompts (default: 0.05)")
    add("--seed", type=not_negative, default=0, metavar="N", help="which prompts are held out (default: 0)")
    add("--skip-bad-records", action="store_true", help="leave bad records out, list them and exit with 3")
    return parser


if __name__ == "__main__":
    main()
