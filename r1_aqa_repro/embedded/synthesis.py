"""Sound primitives: tones, vowels, noise and everyday sounds as float64 arrays [num_samples] at 16 kHz.

Durations are in seconds, frequencies in hertz. Nothing here is normalised: `question_set` sets the level of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from r1_aqa_repro.embedded.draws import Rng

Wave = NDArray[np.float64]

SAMPLING_RATE = 16_000  # Hz
_TABLE_SIZE = 4096

# amplitudes of the harmonics, the fundamental first
HARMONICS = {
    "flute": (1.0, 0.05),
    "organ": (1.0, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5, 0.4, 0.4),
    "clarinet": (1.0, 0.0, 0.7, 0.0, 0.5, 0.0, 0.35, 0.0, 0.25),
}
# (amplitude, frequency ratio, decay a second): the inharmonic partials of a struck bar
BELL_PARTIALS = ((1.0, 1.0, 3.0), (0.8, 2.76, 5.0), (0.6, 5.4, 8.0))
FORMANTS = {"ah": (800.0, 1200.0), "ee": (280.0, 2300.0), "oo": (320.0, 800.0), "eh": (550.0, 1850.0)}
EVENTS = ("siren", "static noise", "engine hum", "bird chirp")


def num_samples(seconds: float) -> int:
    """Samples that `seconds` take."""
    return int(seconds * SAMPLING_RATE)


def silence(seconds: float) -> Wave:
    """Digital silence."""
    return np.zeros(num_samples(seconds))


def fade(wave: Wave, attack: float = 0.02, release: float = 0.04) -> Wave:
    """Ramp both ends linearly, so that a sound neither starts nor stops with a click."""
    rise, fall = (min(num_samples(seconds), len(wave) // 2) for seconds in (attack, release))
    gain = np.ones(len(wave))
    gain[:rise] = np.linspace(0, 1, rise)
    gain[len(wave) - fall :] = np.linspace(1, 0, fall)
    return wave * gain


def tone(contour: float | Sequence[float] | Wave, seconds: float, harmonics: Sequence[float] = (1.0,)) -> Wave:
    """A harmonic tone.

    Args:
        contour: fundamental frequency, or equally spaced points of it that are joined by straight lines.
        seconds: duration.
        harmonics: amplitude of each harmonic, the fundamental first.
    """
    points = np.atleast_1d(np.asarray(contour, dtype=float))
    length = num_samples(seconds)
    frequency = np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(points)), points)
    # one period in a table: a lookup costs the same for 1 and for 40 harmonics
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=complex)
    spectrum[1 : len(harmonics) + 1] = -0.5j * _TABLE_SIZE * np.asarray(harmonics)
    table = np.fft.irfft(spectrum)
    cycles = np.cumsum(frequency) / SAMPLING_RATE
    return table[(cycles * _TABLE_SIZE).astype(np.int64) % _TABLE_SIZE]


def note(frequency: float, seconds: float, instrument: str) -> Wave:
    """One note of `flute`, `organ`, `clarinet` or `bell`."""
    if instrument == "bell":
        time = np.arange(num_samples(seconds)) / SAMPLING_RATE
        partials = [a * np.sin(2 * np.pi * frequency * m * time) * np.exp(-fall * time) for a, m, fall in BELL_PARTIALS]
        return fade(np.sum(partials, axis=0), attack=0.002)
    return fade(tone(frequency, seconds, HARMONICS[instrument]))


def vowel(name: str, contour: float | Sequence[float], seconds: float) -> Wave:
    """A sung vowel: harmonics of the voice (`contour` as in `tone`) through fixed formant resonances."""
    highest = float(np.max(contour))
    source = tone(contour, seconds, [1.0] * int(3800 / highest))
    size = 1 << (len(source) - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1 / SAMPLING_RATE)
    resonances = zip((*FORMANTS[name], 2900.0), (90.0, 110.0, 160.0), (1.0, 0.7, 0.25), strict=True)
    gain = sum(level / (1 + ((frequency - centre) / width) ** 2) for centre, width, level in resonances)
    return fade(np.fft.irfft(np.fft.rfft(source, size) * gain, size)[: len(source)], attack=0.03, release=0.05)


def noise(seconds: float, rng: Rng, low: float = 0.0, high: float = SAMPLING_RATE / 2) -> Wave:
    """White noise between two frequencies, peak 1."""
    length = num_samples(seconds)
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(length), size)
    frequency = np.fft.rfftfreq(size, 1 / SAMPLING_RATE)
    spectrum[(frequency < low) | (frequency > high)] = 0
    wave = np.fft.irfft(spectrum, size)[:length]
    return wave / np.abs(wave).max()


def burst(seconds: float, rng: Rng, low: float, high: float) -> Wave:
    """A struck sound: noise that starts at once and dies away."""
    return fade(noise(seconds, rng, low, high), attack=0.002, release=0.75 * seconds)


def repeated(wave: Wave, period: float, seconds: float) -> Wave:
    """`wave` once every `period`, as often as it fits whole into `seconds`."""
    out = silence(seconds)
    for start in range(0, len(out) - len(wave) + 1, num_samples(period)):
        out[start : start + len(wave)] += wave
    return out


def event(kind: str, seconds: float, rng: Rng) -> Wave:
    """One of `EVENTS`, with random pitch and rate.

    Raises:
        KeyError: unknown `kind`.
    """
    time = np.arange(num_samples(seconds)) / SAMPLING_RATE
    if kind == "siren":
        swing = np.sin(2 * np.pi * rng.uniform(1, 2.5) * np.linspace(0, seconds, 200))
        return fade(tone(700 + 300 * swing, seconds, (1.0, 0.3)))
    if kind == "static noise":
        return fade(noise(seconds, rng))
    if kind == "engine hum":
        hum = tone(rng.uniform(55, 90), seconds, (1.0, 0.9, 0.8, 0.6, 0.5, 0.3))
        return fade(hum * (1 + 0.3 * np.sin(2 * np.pi * 12 * time)))
    if kind == "bird chirp":
        return repeated(fade(tone(np.linspace(2500, 4500, 20), 0.12)), 1 / rng.uniform(3, 5), seconds)
    raise KeyError(kind)
