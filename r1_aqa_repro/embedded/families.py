"""The question families of the embedded set: what is asked, what is heard, what the answer is.

A family draws its answer uniformly, then makes the sound for it; nothing else that a question shows (its
wording, the choices, their order, the length and level of its clip) depends on the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from r1_aqa_repro.embedded.draws import Rng, pick
from r1_aqa_repro.embedded.synthesis import (
    EVENTS,
    FORMANTS,
    Wave,
    burst,
    event,
    noise,
    note,
    repeated,
    silence,
    vowel,
)

# how clearly the right answer differs from the others: 1 is the clearest
CLARITY = {"easy": 1.0, "medium": 0.5, "hard": 0.0}
NUMBERS = ("one", "two", "three", "four")
MAX_SCENE_SECONDS = 2.35


@dataclass(frozen=True)
class Scene:
    """What a family makes.

    question: the text.
    answer: the right choice.
    wrong: wrong answers in random order; the first three at most become choices.
    render: makes the sound, at most `MAX_SCENE_SECONDS`. It draws from the family's generator, and is a function
        because a record whose clip is already on disk does not need its sound again.
    """

    question: str
    answer: str
    wrong: Sequence[str]
    render: Callable[[], Wave]


@dataclass(frozen=True)
class Family:
    """One kind of question. `make(rng, clarity)` draws a scene; `clarity` is a value of `CLARITY`."""

    task: str
    sub_category: str
    category: str
    make: Callable[[Rng, float], Scene]


def _others(rng: Rng, options: Sequence[str], *used: str) -> list[str]:
    """The options that are not used, shuffled."""
    rest = [option for option in options if option not in used]
    return [rest[i] for i in rng.permutation(len(rest))]


def _between(clarity: float, hard: float, easy: float) -> float:
    return hard + (easy - hard) * clarity


def _semitones(frequency: float, steps: float) -> float:
    return float(frequency * 2 ** (steps / 12))


def _leveled(wave: Wave) -> Wave:
    """Root mean square 1."""
    return wave / np.sqrt(np.mean(wave**2))


def _sequence(waves: Sequence[Wave], gap: float) -> Wave:
    """The waves one after the other, each followed by `gap` seconds of silence."""
    return np.concatenate([part for wave in waves for part in (wave, silence(gap))])


# --- sound ------------------------------------------------------------------------------------------------------------


def _event(rng: Rng, clarity: float) -> Scene:
    answer = pick(rng, EVENTS)
    question = pick(rng, ("What sound is heard in the audio?", "Which sound event is present in the recording?"))

    def render() -> Wave:
        wave = event(answer, rng.uniform(1.6, 2.3), rng)
        hiss = _between(clarity, 0.2, 0.0) * rng.standard_normal(len(wave))
        return _leveled(wave) + hiss

    return Scene(question, answer, _others(rng, EVENTS, answer), render)


def _knocks(rng: Rng, clarity: float) -> Scene:
    count = int(rng.integers(1, 5))
    answer = NUMBERS[count - 1]

    def render() -> Wave:
        knocks = [burst(0.16, rng, 100, 900) * rng.uniform(0.7, 1) for _ in range(count)]
        return _sequence(knocks, _between(clarity, 0.3, 0.37) + rng.uniform(-0.02, 0.02))

    return Scene("How many knocks are heard?", answer, _others(rng, NUMBERS, answer), render)


def _loudness(rng: Rng, clarity: float) -> Scene:
    options = ("getting louder", "getting quieter", "staying constant")
    answer = pick(rng, options)

    def render() -> Wave:
        wave = noise(rng.uniform(2.2, 2.3), rng, 200, rng.uniform(2500, 5000))
        ramp = np.geomspace(_between(clarity, 0.03, 0.01), 1, len(wave))
        gains = {"getting louder": ramp, "getting quieter": ramp[::-1], "staying constant": np.ones(len(wave))}
        return wave * gains[answer]

    return Scene("How does the loudness of the sound change?", answer, _others(rng, options, answer), render)


def _order(rng: Rng, clarity: float) -> Scene:
    pair = _others(rng, EVENTS)[:2]
    answer = pair[0]

    def render() -> Wave:
        seconds = _between(clarity, 1.0, 1.15)
        return _sequence([_leveled(event(kind, seconds, rng)) for kind in pair], gap=0.02)

    return Scene("Which sound comes first?", answer, _others(rng, EVENTS, answer), render)


# --- music ------------------------------------------------------------------------------------------------------------


def _melody(rng: Rng, clarity: float) -> Scene:
    steps = {"ascending": (0, 1, 2, 3), "descending": (3, 2, 1, 0), "on one note": (1.5, 1.5, 1.5, 1.5)}
    answer = pick(rng, list(steps))

    def render() -> Wave:
        lowest, interval = rng.uniform(230, 290), _between(clarity, 6, 10)
        return np.concatenate([note(_semitones(lowest, step * interval), 0.57, "flute") for step in steps[answer]])

    return Scene("How does the melody move?", answer, _others(rng, list(steps), answer), render)


def _tempo(rng: Rng, clarity: float) -> Scene:
    periods = {"slow": 0.9, "medium": 0.42, "fast": 0.18}
    answer = pick(rng, list(periods))

    def render() -> Wave:
        spread = _between(clarity, 0.2, 0.05)
        return repeated(burst(0.06, rng, 60, 2500), periods[answer] * rng.uniform(1 - spread, 1 + spread), 2.3)

    return Scene("What is the tempo of the drum beat?", answer, _others(rng, list(periods), answer), render)


def _instrument(rng: Rng, clarity: float) -> Scene:
    options = ("flute", "organ", "clarinet", "bell")
    answer = pick(rng, options)

    def render() -> Wave:
        base, span = rng.uniform(260, 400), int(_between(clarity, 9, 3))  # semitones
        return np.concatenate([note(_semitones(base, step), 0.6, answer) for step in rng.integers(0, span, 3)])

    return Scene("Which instrument is playing?", answer, _others(rng, options, answer), render)


def _chord(rng: Rng, clarity: float) -> Scene:
    dense = (0, 3, 6, 10, 13, 17) if clarity else (0, 4, 10, 17)
    steps = {"single note": (0,), "two octaves": (0, 24), "dense chord": dense}
    answer = pick(rng, list(steps))

    def render() -> Wave:
        base = rng.uniform(230, 330)
        return np.sum([note(_semitones(base, step), 1.8, "flute") for step in steps[answer]], axis=0)

    return Scene("What kind of harmony is played?", answer, _others(rng, list(steps), answer), render)


# --- speech -----------------------------------------------------------------------------------------------------------


def _voice(rng: Rng, clarity: float) -> Scene:
    options = ("low-pitched", "high-pitched")
    answer = pick(rng, options)

    def render() -> Wave:
        octaves = _between(clarity, 0.4, 0.7)  # away from the middle, 175 Hz
        pitch = 175 * 2 ** (octaves if answer == "high-pitched" else -octaves)
        vowels = [vowel(pick(rng, list(FORMANTS)), pitch * rng.uniform(0.93, 1.07), 0.35) for _ in range(4)]
        return _sequence(vowels, 0.08)

    return Scene("How would you describe the voice of the speaker?", answer, _others(rng, options, answer), render)


def _vowel(rng: Rng, clarity: float) -> Scene:
    options = tuple(FORMANTS)
    answer = pick(rng, options)

    def render() -> Wave:
        pitch = rng.uniform(100, _between(clarity, 220, 140))  # a higher voice has fewer harmonics in a formant
        return _sequence([vowel(answer, pitch * rng.uniform(0.95, 1.05), 0.45) for _ in range(3)], 0.1)

    return Scene("Which vowel does the speaker repeat?", answer, _others(rng, options, answer), render)


def _syllables(rng: Rng, clarity: float) -> Scene:
    count = int(rng.integers(1, 5))
    answer = NUMBERS[count - 1]

    def render() -> Wave:
        pitch = rng.uniform(100, 250)
        syllables = [vowel(pick(rng, list(FORMANTS)), pitch * rng.uniform(0.9, 1.1), 0.28) for _ in range(count)]
        return _sequence(syllables, _between(clarity, 0.16, 0.28))

    return Scene("How many syllables does the speaker say?", answer, _others(rng, NUMBERS, answer), render)


def _intonation(rng: Rng, clarity: float) -> Scene:
    options = ("rising", "falling", "flat")
    answer = pick(rng, options)

    def render() -> Wave:
        middle, octaves = rng.uniform(180, 220), _between(clarity, 1.2, 1.8)
        low, high = middle * 2 ** (-octaves / 2), middle * 2 ** (octaves / 2)
        contour = {"rising": (low, high), "falling": (high, low), "flat": (middle, middle)}[answer]
        return vowel(pick(rng, list(FORMANTS)), np.geomspace(*contour, 20).tolist(), rng.uniform(2.0, 2.3))

    return Scene("What is the intonation of the utterance?", answer, _others(rng, options, answer), render)


_EXTRACTION, _REASONING = "Information Extraction", "Reasoning"
FAMILIES: dict[str, tuple[Family, ...]] = {
    "sound": (
        Family("sound", "event", _EXTRACTION, _event),
        Family("sound", "knocks", _REASONING, _knocks),
        Family("sound", "loudness", _EXTRACTION, _loudness),
        Family("sound", "order", _REASONING, _order),
    ),
    "music": (
        Family("music", "melody", _REASONING, _melody),
        Family("music", "tempo", _EXTRACTION, _tempo),
        Family("music", "instrument", _EXTRACTION, _instrument),
        Family("music", "chord", _EXTRACTION, _chord),
    ),
    "speech": (
        Family("speech", "voice", _EXTRACTION, _voice),
        Family("speech", "vowel", _EXTRACTION, _vowel),
        Family("speech", "syllables", _REASONING, _syllables),
        Family("speech", "intonation", _REASONING, _intonation),
    ),
}
