"""Divide a manifest into a part to train on and a part held out, with no clip and no source video in both.

    python -m data_prep.split data/avqa/manifest.jsonl --held-out 500 --by video --seed 0

writes train.jsonl, held_out.jsonl and split.json. Questions that share a source video (with `--by video`) or a clip
(the same file or the same samples) stay together, so the number held out is as near to the one asked for as whole
videos allow. Which they are depends on the seed and the set of questions, not on their order in the file.

Exit codes: 0 done; 2 refused, and nothing is written: a bad record, a clip that cannot be decoded, a question without a
source video, a number that cannot be held out; 130 interrupted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.fingerprints import Clips, decode_clips, video_of
from data_prep.workers import add_workers_argument
from r1_aqa_repro.common.console import Options, not_negative, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, Problem, Refused, command
from r1_aqa_repro.common.files import LOCK, output_folder, sha256_of, sole_use, write_json
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest

TRAIN, HELD_OUT = "train", "held_out"


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    # paths from one real folder to another: `..` behind a link would lead elsewhere
    manifest = arguments.manifest.parent.resolve() / arguments.manifest.name
    out = (arguments.out or arguments.manifest.parent).resolve()
    if manifest in (out / f"{TRAIN}.jsonl", out / f"{HELD_OUT}.jsonl"):
        raise Refused.because(str(manifest), "the result would overwrite it", "Give another --out.")
    read = read_questions(manifest)
    if read.problems:
        raise Refused(read.problems)
    if arguments.held_out >= len(read.records):
        what = f"{arguments.held_out:,} of its {len(read.records):,} questions cannot be held out"
        raise Refused.because(str(arguments.manifest), what, "Give a smaller --held-out.")
    without = [question.id for question in read.records if question.source_video is None]
    if arguments.by == "video" and without:
        what = f"{len(without):,} questions name no source_video, the first being {without[0]}"
        raise Refused.because(str(arguments.manifest), what, "Split --by clip.")
    clips = decode_clips(read.records, arguments.workers)
    _require_audio(read.records, clips)
    groups = group(read.records, clips, arguments.by)
    chosen = hold_out(groups, arguments.held_out, arguments.seed)
    if not chosen:
        what = f"all questions belong together: they share one {arguments.by}, directly or by way of others"
        raise Refused.because(str(arguments.manifest), what, "There is nothing to divide.")

    sides: dict[str, list[AudioQuestion]] = {TRAIN: [], HELD_OUT: []}
    for question in read.records:
        side = HELD_OUT if groups[question.id] in chosen else TRAIN
        sides[side].append(replace(question, split=side))
    facts = {
        "manifest_sha256": sha256_of(manifest),
        "by": arguments.by,
        "seed": arguments.seed,
        "asked_for": arguments.held_out,
        TRAIN: len(sides[TRAIN]),
        HELD_OUT: len(sides[HELD_OUT]),
        "groups": len(set(groups.values())),
        "groups_held_out": len(chosen),
    }
    with sole_use(out / LOCK, "Give another --out."):
        for side, questions in sides.items():
            write_manifest(out / f"{side}.jsonl", questions)
        write_json(out / "split.json", facts)
    say(
        f"{facts[TRAIN]:,} to train on, {facts[HELD_OUT]:,} held out ({arguments.held_out:,} asked for; "
        f"{facts['groups_held_out']:,} of {facts['groups']:,} {arguments.by}s): "
        f"{out / f'{TRAIN}.jsonl'}, {out / f'{HELD_OUT}.jsonl'}"
    )
    return EXIT_DONE


def group(questions: Sequence[AudioQuestion], clips: Clips, by: str) -> dict[str, str]:
    """Which questions must stay together, directly or by way of others.

    Returns:
        {question id: name of its group}, the name being the least id in it.
    """
    parents = {question.id: question.id for question in questions}

    def root(question_id: str) -> str:
        while parents[question_id] != question_id:
            parents[question_id] = parents[parents[question_id]]
            question_id = parents[question_id]
        return question_id

    first_with: dict[Hashable, str] = {}
    for question in questions:
        keys: list[Hashable] = [("file", question.audio_path), ("samples", clips[question.audio_path].pcm)]
        if by == "video":
            keys.append(("video", video_of(question)))
        for key in keys:
            one, other = root(question.id), root(first_with.setdefault(key, question.id))
            parents[max(one, other)] = min(one, other)
    return {question.id: root(question.id) for question in questions}


def hold_out(groups: dict[str, str], wanted: int, seed: int) -> set[str]:
    """Names of groups that have together as nearly `wanted` questions as is possible: some of them, but not all.

    The groups are taken in an order drawn from the seed, each unless the rest could then not come as near. The set is
    empty if there is only one group.
    """
    sizes = Counter(groups.values())
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    most = min(max(2 * wanted, *sizes.values()), len(groups) - 1)
    within = (1 << most + 1) - 1
    # bit n of reachable[i]: some of the groups from the i-th on have together n questions
    reachable = [1] * (len(order) + 1)
    for index in range(len(order) - 1, -1, -1):
        reachable[index] = (reachable[index + 1] | reachable[index + 1] << sizes[order[index]]) & within
    left = min((n for n in range(1, most + 1) if reachable[0] >> n & 1), key=lambda n: abs(n - wanted), default=0)
    chosen = set()
    for index, name in enumerate(order):
        if sizes[name] <= left and reachable[index + 1] >> (left - sizes[name]) & 1:
            chosen.add(name)
            left -= sizes[name]
    return chosen


def _require_audio(questions: Sequence[AudioQuestion], clips: Clips) -> None:
    problems = [
        Problem(question.id, "; ".join(what for _, what in clips[question.audio_path].problems),
                "Nothing tells whose clip it shares: prepare the data again, or take the question out.")
        for question in questions
        if clips[question.audio_path].pcm is None
    ]  # fmt: skip
    if problems:
        raise Refused(problems)


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.split")
    add = parser.add_argument
    add("manifest", type=Path, metavar="MANIFEST", help="the manifest to divide")
    add("--held-out", type=positive, required=True, metavar="N", help="about how many questions to hold out")
    add("--by", choices=("video", "clip"), required=True, help="what must not stand on both sides, beside the clip")
    add("--seed", type=not_negative, default=0, metavar="N", help="which questions are held out (default: 0)")
    add("--out", type=output_folder, metavar="DIR", help="where to write (default: beside the manifest)")
    add_workers_argument(parser)
    return parser


if __name__ == "__main__":
    main()
