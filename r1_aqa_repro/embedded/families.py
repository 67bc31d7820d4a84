"""The question families of the embedded set: what is asked, what is heard, what the answer is.

A family draws its answer uniformly, then makes the sound for it; nothing else that a question shows (its
wording, the choices, their order, the length and level of its clip) depends on the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


def one_of(rng: Rng, options: Sequence[str]) -> list[str]:
    """The answer alone."""
    return [pick(rng, options)]


def shuffled(rng: Rng, options: Sequence[str]) -> list[str]:
    """All options in random order."""
    return [options[i] for i in rng.permutation(len(options))]


@dataclass(frozen=True)
class Family:
    """One kind of question.

    question: the wordings.
    options: the answers that there are.
    sound: makes the sound, at most `MAX_SCENE_SECONDS`, from a generator, a value of `CLARITY` and what was drawn.
    draw: what the sound is made of; the first is the answer.
    """

    sub_category: str
    category: str
    question: tuple[str, ...]
    options: Sequence[str]
    sound: Callable[..., Wave]
    draw: Callable[[Rng, Any], list[str]] = one_of


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


def _event(rng: Rng, clarity: float, kind: str) -> Wave:
    wave = event(kind, rng.uniform(1.6, 2.3), rng)
    hiss = _between(clarity, 0.2, 0.0) * rng.standard_normal(len(wave))
    return _leveled(wave) + hiss


def _knocks(rng: Rng, clarity: float, number: str) -> Wave:
    knocks = [burst(0.16, rng, 100, 900) * rng.uniform(0.7, 1) for _ in range(NUMBERS.index(number) + 1)]
    return _sequence(knocks, _between(clarity, 0.3, 0.37) + rng.uniform(-0.02, 0.02))


def _loudness(rng: Rng, clarity: float, change: str) -> Wave:
    wave = noise(rng.uniform(2.2, 2.3), rng, 200, rng.uniform(2500, 5000))
    ramp = np.geomspace(_between(clarity, 0.03, 0.01), 1, len(wave))
    gains = {"getting louder": ramp, "getting quieter": ramp[::-1], "staying constant": np.ones(len(wave))}
    return wave * gains[change]


def _order(rng: Rng, clarity: float, *kinds: str) -> Wave:
    seconds = _between(clarity, 1.0, 1.15)
    return _sequence([_leveled(event(kind, seconds, rng)) for kind in kinds[:2]], gap=0.02)


_MELODIES = {"ascending": (0, 1, 2, 3), "descending": (3, 2, 1, 0), "on one note": (1.5, 1.5, 1.5, 1.5)}


def _melody(rng: Rng, clarity: float, movement: str) -> Wave:
    lowest, interval = rng.uniform(230, 290), _between(clarity, 6, 10)
    return np.concatenate([note(_semitones(lowest, step * interval), 0.57, "flute") for step in _MELODIES[movement]])


_PERIODS = {"slow": 0.9, "medium": 0.42, "fast": 0.18}


def _tempo(rng: Rng, clarity: float, tempo: str) -> Wave:
    spread = _between(clarity, 0.2, 0.05)
    return repeated(burst(0.06, rng, 60, 2500), _PERIODS[tempo] * rng.uniform(1 - spread, 1 + spread), 2.3)


def _instrument(rng: Rng, clarity: float, instrument: str) -> Wave:
    base, span = rng.uniform(260, 400), int(_between(clarity, 9, 3))  # semitones
    return np.concatenate([note(_semitones(base, step), 0.6, instrument) for step in rng.integers(0, span, 3)])


def _chord(rng: Rng, clarity: float, chord: str) -> Wave:
    dense = (0, 3, 6, 10, 13, 17) if clarity else (0, 4, 10, 17)
    steps = {"single note": (0,), "two octaves": (0, 24), "dense chord": dense}[chord]
    base = rng.uniform(230, 330)
    return np.sum([note(_semitones(base, step), 1.8, "flute") for step in steps], axis=0)


_VOICES = {"low-pitched": -1, "high-pitched": 1}


def _voice(rng: Rng, clarity: float, height: str) -> Wave:
    pitch = 175 * 2 ** (_VOICES[height] * _between(clarity, 0.4, 0.7))  # so many octaves away from 175 Hz
    vowels = [vowel(pick(rng, list(FORMANTS)), pitch * rng.uniform(0.93, 1.07), 0.35) for _ in range(4)]
    return _sequence(vowels, 0.08)


def _vowel(rng: Rng, clarity: float, name: str) -> Wave:
    pitch = rng.uniform(100, _between(clarity, 220, 140))  # a higher voice has fewer harmonics in a formant
    return _sequence([vowel(name, pitch * rng.uniform(0.95, 1.05), 0.45) for _ in range(3)], 0.1)


def _syllables(rng: Rng, clarity: float, number: str) -> Wave:
    pitch, count = rng.uniform(100, 250), NUMBERS.index(number) + 1
    syllables = [vowel(pick(rng, list(FORMANTS)), pitch * rng.uniform(0.9, 1.1), 0.28) for _ in range(count)]
    return _sequence(syllables, _between(clarity, 0.16, 0.28))


def _intonation(rng: Rng, clarity: float, intonation: str) -> Wave:
    middle, octaves = rng.uniform(180, 220), _between(clarity, 1.2, 1.8)
    low, high = middle * 2 ** (-octaves / 2), middle * 2 ** (octaves / 2)
    contour = {"rising": (low, high), "falling": (high, low), "flat": (middle, middle)}[intonation]
    return vowel(pick(rng, list(FORMANTS)), np.geomspace(*contour, 20).tolist(), rng.uniform(2.0, 2.3))


_EXTRACTION, _REASONING = "Information Extraction", "Reasoning"
_WHAT_SOUND = ("What sound is heard in the audio?", "Which sound event is present in the recording?")
_LOUDNESS = ("getting louder", "getting quieter", "staying constant")
_INSTRUMENTS = ("flute", "organ", "clarinet", "bell")
_INTONATIONS = ("rising", "falling", "flat")
_CHORDS = ("single note", "two octaves", "dense chord")
FAMILIES: dict[str, tuple[Family, ...]] = {  # by task
    "sound": (
        Family("event", _EXTRACTION, _WHAT_SOUND, EVENTS, _event),
        Family("knocks", _REASONING, ("How many knocks are heard?",), NUMBERS, _knocks),
        Family("loudness", _EXTRACTION, ("How does the loudness of the sound change?",), _LOUDNESS, _loudness),
        Family("order", _REASONING, ("Which sound comes first?",), EVENTS, _order, shuffled),
    ),
    "music": (
        Family("melody", _REASONING, ("How does the melody move?",), tuple(_MELODIES), _melody),
        Family("tempo", _EXTRACTION, ("What is the tempo of the drum beat?",), tuple(_PERIODS), _tempo),
        Family(
            "instrument",
            _EXTRACTION,
            ("Which instrument is playing?",),
            ("flute", "organ", "clarinet", "bell"),
            _instrument,
        ),
        Family("chord", _EXTRACTION, ("What kind of harmony is played?",), _CHORDS, _chord),
    ),
    "speech": (
        Family(
            "voice",
            _EXTRACTION,
            ("How would you describe the voice of the speaker?",),
            ("low-pitched", "high-pitched"),
            _voice,
        ),
        Family("vowel", _EXTRACTION, ("Which vowel does the speaker repeat?",), tuple(FORMANTS), _vowel),
        Family("syllables", _REASONING, ("How many syllables does the speaker say?",), NUMBERS, _syllables),
        Family(
            "intonation",
            _REASONING,
            ("What is the intonation of the utterance?",),
            ("rising", "falling", "flat"),
            _intonation,
        ),
    ),
}
