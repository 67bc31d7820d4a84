"""Multiple-choice questions about labelled clips that cannot be answered without listening.

Recordings are divided into parts, questions are drawn so that their choices are exchangeable, and what a guess from the
text alone scores is measured.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.folder import Account
from data_prep.label_tables import LabelledClip
from r1_aqa_repro.common.intervals import clopper_pearson
from r1_aqa_repro.data.questions import AudioQuestion

FEW_RECORDINGS, FEW_LABELS, UNTRAINED = "label with few recordings", "family with few labels", "label not in training"
ELSEWHERE = "recording of another part"

CHOICES = range(2, 9)  # numbers of them that a question may have

# How often one of all intervals misses its share, at most: of 2,000 drawings that cannot be guessed from, one is called
# biased.
_ERROR = 0.001

Parts = dict[str, list[LabelledClip]]


@dataclass(frozen=True)
class Source:
    """A source that is held out: everything of it, or one family's clips."""

    name: str
    family: str | None = None

    def __str__(self) -> str:
        """As `--hold-out-source` takes it."""
        return f"{self.family}={self.name}" if self.family else self.name

    def has(self, clip: LabelledClip) -> bool:
        return clip.source == self.name and self.family in (None, clip.family)


@dataclass(frozen=True)
class Drawing:
    """How questions are drawn.

    Attributes:
        seed: of the drawing.
        train_parts: those to train on.
        choices: number of choices of a question.
        templates: questions of each family, of which one is drawn.
        per_family: questions of each family in each part to train on; None: as many as it has clips there.
        held_out_per_family: the same in each other part, at most, or none; None: as many as `questions_a_clip` allows.
        questions_a_clip: how often a clip is asked about at most, but in training.
        dataset: what the questions' dataset is called.
    """

    seed: int
    train_parts: Sequence[str]
    choices: int
    templates: Mapping[str, Sequence[str]]
    per_family: int | None
    held_out_per_family: int | None
    questions_a_clip: int
    dataset: str


def divide(
    clips: Sequence[LabelledClip],
    share: float,
    train: Sequence[str],
    held_out: Sequence[str],
    sources: Sequence[Source],
    minimum: int,
    account: Account,
) -> Parts:
    """Put every recording into one part, whatever its families: one of the held-out sources', of `held_out` or `train`.

    Of the recordings of each label that has at least `minimum`, the `share` whose names have the least SHA-256 is held
    out, one at least a part of `held_out`. Of these parts, and of those of `train`, each recording goes to the one that
    has the fewest of that label. The rarest labels come first: what they leave to training stays there. So the parts
    depend on the recordings, and on no seed.

    Returns:
        the clips of each part, in their order. Those of a held-out source's recording that are not of its family are
        noted in the `account`.
    """
    natural: dict[str, str] = {}  # by recording
    for source in sources:
        for clip in filter(source.has, clips):
            natural.setdefault(clip.recording, source.name)
    elsewhere = set(natural)
    of_label = recordings_of_labels(clip for clip in clips if clip.recording not in elsewhere)
    for _, recordings in sorted(of_label.items(), key=lambda item: (len(item[1]), item[0])):
        if len(recordings) < minimum:
            continue
        wanted = max(len(held_out), round(share * len(recordings))) if share else 0
        there = Counter(natural[recording] for recording in recordings if recording in natural)
        for recording in sorted((one for one in recordings if one not in natural), key=_digest):
            among = held_out if sum(there[name] for name in held_out) < wanted else train
            natural[recording] = min(among, key=lambda name: there[name])
            there[natural[recording]] += 1
    parts: Parts = {name: [] for name in (*train, *held_out, *(source.name for source in sources))}
    for clip in clips:
        own = next((source.name for source in sources if source.has(clip)), None)
        part = natural.get(clip.recording, train[0])
        if clip.recording in elsewhere and own != part:
            account.lose(clip.where, ELSEWHERE, f"the recording {clip.recording} is held out with the source {part}")
        else:
            parts[part].append(clip)
    return parts


def recordings_of_labels(clips: Iterable[LabelledClip]) -> dict[tuple[str, str], set[str]]:
    """{(family, label): its recordings}"""
    found = defaultdict(set)
    for clip in clips:
        found[clip.family, clip.label].add(clip.recording)
    return found


def _digest(recording: str) -> bytes:
    return hashlib.sha256(recording.encode()).digest()


def without_rare(
    parts: Parts, train: Sequence[str], held_out: Sequence[str], minimum: int, choices: int, account: Account
) -> Parts:
    """The parts without what cannot be learned or asked about, which is noted in the `account`.

    That is labels with fewer than `minimum` recordings in the parts of `train` and `held_out` together, elsewhere
    labels that training then does not have, and families of which a part has fewer than `choices` labels left.
    """
    own = (*train, *held_out)
    found = recordings_of_labels(clip for part in own for clip in parts[part])
    frequent = {label for label, recordings in found.items() if len(recordings) >= minimum}
    trained = {(clip.family, clip.label) for part in train for clip in parts[part]} & frequent
    kept: Parts = {part: [] for part in parts}
    for part, clips in parts.items():
        number = Counter(family for family, _ in {(clip.family, clip.label) for clip in clips} & trained)
        for clip in clips:
            label = (clip.family, clip.label)
            if label in trained and number[clip.family] >= choices:
                kept[part].append(clip)
            elif label in trained:
                what = f"{clip.family} has {number[clip.family]} labels in {part}, and a question {choices} choices"
                account.lose(clip.where, FEW_LABELS, what)
            elif part in own and label not in frequent:
                what = f"{clip.label} has {len(found[label])} of the {minimum} recordings that it takes"
                account.lose(clip.where, FEW_RECORDINGS, what)
            else:
                account.lose(clip.where, UNTRAINED, f"{clip.label} of the family {clip.family}")
    return kept


def draw(part: str, clips: Sequence[LabelledClip], drawing: Drawing) -> list[AudioQuestion]:
    """Questions of a part in an order that is drawn too; their `audio_path` is the clip's path in the table.

    Of the labels that still have clips as many as there are choices are drawn, then which of them is right, then its
    clip. So every choice is right with the same probability, whatever the text says, and labels come up alike, whatever
    their number of clips. In training a clip is asked about again after all others of its label; in other parts a label
    is no longer drawn when its clips are used up, and the family ends when too few labels are left.

    A family's questions depend on its clips and the seed alone, not on the other families.
    """
    drawn = []
    training = part in drawing.train_parts
    for family in dict.fromkeys(clip.family for clip in clips):
        rng = random.Random(f"{drawing.seed} {part} {family}")  # of a text: by its SHA-512
        by_label: dict[str, list[LabelledClip]] = defaultdict(list)
        for clip in (clip for clip in clips if clip.family == family):
            by_label[clip.label].append(clip)
        queues = {}
        for label, of_label in sorted(by_label.items()):
            rng.shuffle(of_label)
            queues[label] = deque(of_label * (1 if training else drawing.questions_a_clip))
        number_of_clips = sum(map(len, by_label.values()))
        wanted = drawing.per_family if training else drawing.held_out_per_family
        if wanted is None:
            wanted = number_of_clips * (1 if training else drawing.questions_a_clip)
        for number in range(wanted):
            left = [label for label, queue in queues.items() if queue]
            if len(left) < drawing.choices:
                break
            choices = rng.sample(left, drawing.choices)
            answer = rng.choice(choices)
            clip = queues[answer].popleft()
            if training:
                queues[answer].append(clip)
            question = AudioQuestion(
                id=f"{drawing.dataset}-{part}-{drawing.seed}-{family}-{number:05d}",
                audio_path=Path(clip.path),
                question=rng.choice(drawing.templates[family]),
                choices=tuple(choices),
                answer=answer,
                dataset=drawing.dataset,
                split=part,
                task=clip.task or None,
                category=family,
                sub_category=f"{family}, {clip.source}",
                source_video=clip.recording,
                source=clip.source,
                licence=clip.licence or None,
            )
            drawn.append(question)
    random.Random(f"{drawing.seed} {part}").shuffle(drawn)
    return drawn


@dataclass(frozen=True)
class Blind:
    """What the best guess from text scores on the questions of a family in a part.

    Attributes:
        correct, n: questions guessed right, of how many.
        chance: share of a guess at random.
        interval: of the share, 99.9 % for all families and parts together (Clopper-Pearson, Bonferroni).
    """

    correct: int
    n: int
    chance: float
    interval: tuple[float, float]

    @property
    def is_biased(self) -> bool:
        """Whether the guess is better than chance beyond its interval."""
        return self.interval[0] > self.chance

    def facts(self) -> dict[str, Any]:
        """As the account has it."""
        return {"accuracy": self.correct / self.n, "interval": list(self.interval), "chance": self.chance}


def blind_baselines(asked: Mapping[str, Sequence[AudioQuestion]], train: Sequence[str]) -> dict[tuple[str, str], Blind]:
    """{(part, family): score of the choice that is right most often where it is offered in training}.

    A training question is guessed from those before it: its own answer would tell, and of two halves guessed from each
    other what one has by chance the other has too. The first of several best choices is taken.
    """
    right: Counter[tuple[str, str]] = Counter()  # by family and choice, in training
    offered: Counter[tuple[str, str]] = Counter()
    correct: Counter[tuple[str, str]] = Counter()  # by part and family
    total: Counter[tuple[str, str]] = Counter()
    chance: dict[tuple[str, str], float] = {}
    for part, questions in sorted(asked.items(), key=lambda item: item[0] not in train):
        for question in questions:
            options = [(str(question.category), choice) for choice in question.choices]
            rates = [right[option] / max(1, offered[option]) for option in options]
            key = part, str(question.category)
            correct[key] += question.choices[rates.index(max(rates))] == question.answer
            total[key] += 1
            chance[key] = 1 / len(options)
            if part in train:
                offered.update(options)
                right[str(question.category), str(question.answer)] += 1
    intervals = {key: clopper_pearson(correct[key], n, _ERROR / len(total)) for key, n in total.items()}
    return {key: Blind(correct[key], n, chance[key], intervals[key]) for key, n in total.items()}
