"""Fingerprints by which a recording is known again after it was encoded, resampled, made louder or cut.

The method of J. Haitsma and T. Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002: every 12 ms a
sub-fingerprint of 32 bits says of 32 neighbouring bands, over 0.384 s, whether the difference of their energies has
grown; two recordings are one where over 256 sub-fingerprints (3 s) at most 35 % of the bits differ. Where to compare is
found by sub-fingerprints that are equal, or are after some of their least certain bits were turned.

Three things are not as there. The bands reach from 300 to 3400 Hz (not 2000), since clips hold other sounds than music.
Stretches of under 256 sub-fingerprints are compared too, under a threshold that is as many standard deviations away
from 50 %, where recordings that have nothing in common are. And where fingerprints agree, the samples must too
(`confirmed`): sirens and gliding voices of a synthesiser agree band by band, though one is some percent higher.

What was played at another speed or pitch, or recorded anew through the air, is not known again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
import soxr
from numpy.typing import NDArray

from r1_aqa_repro.data.audio import SAMPLING_RATE

RATE = 8000  # Hz at which sounds are analysed
WINDOW, HOP = 3072, 96  # samples at that rate: 0.384 s every 12 ms, as 31 of 32 parts of the paper's windows overlap
LOWEST, HIGHEST = 300.0, 3400.0  # Hz
BLOCK = 256  # sub-fingerprints that are compared at once; of fewer, down to `SHORTEST`, all there are
SHORTEST = 64
MOST_WRONG = 0.35  # of the bits of a block
# Standard deviation of the bit error rate of two blocks that have nothing in common, by the paper: the bits of a block
# depend on one another, which makes it three times that of independent bits.
DEVIATION = 3 * 0.5 / (32 * BLOCK) ** 0.5
# Of the samples of two stretches, between `LOWEST` and `HIGHEST`; 0.707 if one is the first of two channels that have
# nothing in common, and the other their mean.
LEAST_CORRELATION = 0.7

_MOST_LAG = 2 * HOP  # samples by which an offset that fingerprints give may be wrong
_QUIET = 1e-5  # of the energy of a clip's loudest window: the bits of windows under it (-50 dB) are a codec's choice
_WEAK_BITS = 3  # of a sub-fingerprint: those that are turned, in all combinations, to find equal ones
_COMMONEST = 256  # places of one sub-fingerprint in an index above which it tells nothing
_WINDOWS_AT_ONCE = 128  # bounds the memory of an analysis, and stays in the cache
_PAIRS_AT_ONCE = 256  # bounds the memory of a comparison
_EDGES = np.rint(np.geomspace(LOWEST, HIGHEST, 34) * WINDOW / RATE).astype(int)  # bins where the 33 bands begin and end
_HANN = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
_SUBSETS = np.array([[subset >> bit & 1 for subset in range(1 << _WEAK_BITS)] for bit in range(_WEAK_BITS)], np.uint32)


@dataclass(frozen=True)
class Fingerprint:
    """What is known of a clip, one sub-fingerprint every `HOP`.

    Attributes:
        bits: uint32 [num], bit 31 for the lowest bands.
        weak: uint32 [num, 3], the bits of each whose sign is least certain, one set in each.
        sounding: bool [num], False where the clip is much quieter than elsewhere; only what sounds is compared.
    """

    bits: NDArray[np.uint32]
    weak: NDArray[np.uint32]
    sounding: NDArray[np.bool_]

    @property
    def is_comparable(self) -> bool:
        return int(self.sounding.sum()) >= SHORTEST


@dataclass(frozen=True)
class Match:
    """A stretch that two clips have in common.

    Attributes:
        clip: which of the index.
        start: in seconds, where it begins in the clip that was looked for.
        offset: in seconds, where the clip of the index begins in the one that was looked for; negative if before it.
        seconds: how long the stretch is.
        bit_error_rate: share of its bits that differ, 0-1.
        threshold: what that share could have been at most, see `threshold`.
        correlation: of the samples, 0-1, once it is `confirmed`.
    """

    clip: int
    start: float
    offset: float
    seconds: float
    bit_error_rate: float
    threshold: float
    correlation: float | None = None


def fingerprint(samples: NDArray[np.float32]) -> Fingerprint:
    """The fingerprint of [num_samples] at 16 kHz; it has no sub-fingerprint if they last under 0.396 s."""
    heard = soxr.resample(samples, SAMPLING_RATE, RATE, quality="HQ")
    if len(heard) < WINDOW + HOP:
        nothing = np.zeros(0, np.uint32)
        return Fingerprint(nothing, nothing.reshape(0, _WEAK_BITS), nothing.astype(bool))
    windows = np.lib.stride_tricks.sliding_window_view(heard, WINDOW)[::HOP]
    parts = [_energies(windows[begin : begin + _WINDOWS_AT_ONCE]) for begin in range(0, len(windows), _WINDOWS_AT_ONCE)]
    energies = np.concatenate(parts)  # [num + 1, 33]
    steps = energies[:, :-1] - energies[:, 1:]
    growth = steps[1:] - steps[:-1]
    weakest = np.argpartition(np.abs(growth), _WEAK_BITS, axis=1)[:, :_WEAK_BITS].astype(np.uint32)
    loudness = energies.sum(axis=1)
    is_loud = loudness > _QUIET * loudness.max()
    return Fingerprint(
        np.packbits(growth > 0, axis=1).view(">u4")[:, 0].astype(np.uint32),
        np.uint32(1) << (np.uint32(31) - weakest),
        is_loud[1:] & is_loud[:-1],
    )


def threshold(num: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Greatest bit error rate at which `num` sub-fingerprints are of one recording: 35 % of 256 or more, and of fewer
    what is as many standard deviations under 50 %; below 0, which none has, under `SHORTEST`."""
    num = np.asarray(num)
    fewest = np.clip(num, 1, BLOCK)
    return np.where(num < SHORTEST, -1.0, 0.5 - (0.5 - MOST_WRONG) * np.sqrt(BLOCK / fewest))


def confirmed(match: Match, here: NDArray[np.float32], there: NDArray[np.float32]) -> Match | None:
    """The match with its correlation and a more exact offset; None if the samples do not agree.

    Args:
        match: what `Index.matches` found.
        here: [num_samples] at 16 kHz of the clip that was looked for.
        there: the same of the clip of the index.
    """
    begins = round(match.start * RATE), round((match.start - match.offset) * RATE)
    heard = [soxr.resample(samples, SAMPLING_RATE, RATE, quality="HQ") for samples in (here, there)]
    parts = [samples[begin:][: round(match.seconds * RATE)] for samples, begin in zip(heard, begins, strict=True)]
    size = scipy.fft.next_fast_len(max(map(len, parts)) + _MOST_LAG, real=True)
    frequencies = np.fft.rfftfreq(size, 1 / RATE)
    is_in_band = (frequencies >= LOWEST) & (frequencies <= HIGHEST)
    spectra = [scipy.fft.rfft(part, size) * is_in_band for part in parts]
    products = scipy.fft.irfft(spectra[0].conj() * spectra[1], size)
    energies = [float(np.sum(scipy.fft.irfft(spectrum, size) ** 2)) for spectrum in spectra]
    lags = np.arange(-_MOST_LAG, _MOST_LAG + 1)  # by which the other clip is later than was thought
    correlations = np.abs(products[lags]) / math.sqrt(math.prod(energies))
    best = int(np.argmax(correlations))
    if correlations[best] < LEAST_CORRELATION:
        return None
    offset, correlation = match.offset - lags[best] / RATE, float(correlations[best])
    return replace(match, offset=round(float(offset), 4), correlation=round(correlation, 3))


class Index:
    """Clips among which others are looked for."""

    def __init__(self, clips: Sequence[Fingerprint]):
        lengths = np.array([len(clip.bits) for clip in clips], np.int64)
        self._ends = np.cumsum(lengths)
        self._starts = self._ends - lengths
        self._bits = np.concatenate([clip.bits for clip in clips])
        self._sounding = np.concatenate([clip.sounding for clip in clips])
        places = np.flatnonzero(self._sounding)
        order = np.argsort(self._bits[places], kind="stable")
        self._places = places[order]
        self._keys = self._bits[self._places]

    def matches(self, clip: Fingerprint) -> list[Match]:
        """Of each clip of the index that has a stretch in common with this one, where they agree best."""
        which, shifts = self._candidates(clip)
        found: dict[int, tuple[float, int]] = {}
        for begin in range(0, len(which), _PAIRS_AT_ONCE):
            pairs = which[begin : begin + _PAIRS_AT_ONCE], shifts[begin : begin + _PAIRS_AT_ONCE]
            excess = self._excess(clip, *pairs)
            for place in np.flatnonzero(excess <= 0):
                one, shift = int(pairs[0][place]), int(pairs[1][place])
                found[one] = min(found.get(one, (1.0, 0)), (float(excess[place]), shift))
        return [self._match(clip, which, shift) for which, (_, shift) in sorted(found.items())]

    def _candidates(self, clip: Fingerprint) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where to compare: (clip of the index, sub-fingerprints by which it begins after this one), no pair twice."""
        sounding = np.flatnonzero(clip.sounding)
        keys = clip.bits[sounding, None] ^ (clip.weak[sounding] @ _SUBSETS)
        first = np.searchsorted(self._keys, keys, "left").ravel()
        counts = np.searchsorted(self._keys, keys, "right").ravel() - first
        counts[counts > _COMMONEST] = 0
        places = self._places[_ranges(first, counts)]
        which = np.searchsorted(self._ends, places, "right")
        shifts = np.repeat(np.repeat(sounding, keys.shape[1]), counts) - (places - self._starts[which])
        unique = np.unique((which << 32) + shifts + (1 << 31))
        return unique >> 32, (unique & ((1 << 32) - 1)) - (1 << 31)

    def _excess(self, clip: Fingerprint, which: NDArray[np.int64], shifts: NDArray[np.int64]) -> NDArray[np.float64]:
        """By how much the best block of each pair is over its threshold; negative where the clips agree."""
        begin = np.maximum(shifts, 0)
        length = np.minimum(len(clip.bits), shifts + self._ends[which] - self._starts[which]) - begin
        here = _ranges(begin, length)
        there = _ranges(self._starts[which] + begin - shifts, length)
        sounding = clip.sounding[here] & self._sounding[there]
        wrong = np.bitwise_count(clip.bits[here] ^ self._bits[there]) * sounding
        sums = [np.concatenate([[0], np.cumsum(each, dtype=np.int64)]) for each in (wrong, sounding)]
        block = np.minimum(length, BLOCK)
        blocks = length - block + 1
        begins = _ranges(np.cumsum(length) - length, blocks)
        ends = begins + np.repeat(block, blocks)
        num_wrong, num = (each[ends] - each[begins] for each in sums)
        return np.minimum.reduceat(_excess(num_wrong, num), np.cumsum(blocks) - blocks)

    def _match(self, clip: Fingerprint, which: int, shift: int) -> Match:
        """The stretch of all blocks around the best one that agree at this shift."""
        begin = max(shift, 0)
        there = slice(int(self._starts[which]) + begin - shift, int(self._ends[which]))
        length = min(len(clip.bits) - begin, there.stop - there.start)
        bits, sounding = self._bits[there][:length], self._sounding[there][:length]
        sounding = clip.sounding[begin : begin + length] & sounding
        wrong = np.bitwise_count(clip.bits[begin : begin + length] ^ bits) * sounding
        block = min(length, BLOCK)
        num_wrong, num = (np.convolve(each, np.ones(block, np.int64), "valid") for each in (wrong, sounding))
        excess = _excess(num_wrong, num)
        borders = np.concatenate([[-1], np.flatnonzero(excess > 0), [len(excess)]])
        after = int(np.searchsorted(borders, np.argmin(excess)))
        first, end = int(borders[after - 1]) + 1, int(borders[after]) - 1 + block
        # a block agrees though half of it is of something else, and of that the samples would not correlate
        parts = (np.convolve(each[first:end], np.ones(SHORTEST, np.int64), "valid") for each in (wrong, sounding))
        alike = np.flatnonzero(_is_alike(*parts))
        if len(alike):
            first, end = first + int(alike[0]), first + int(alike[-1]) + SHORTEST
        num_compared = int(sounding[first:end].sum())
        return Match(
            which,
            round((begin + first) * HOP / RATE, 3),
            round(shift * HOP / RATE, 3),
            round(((end - first) * HOP + WINDOW) / RATE, 3),
            round(int(wrong[first:end].sum()) / (32 * num_compared), 4),
            round(float(threshold(num_compared)), 4),
        )


def _excess(num_wrong: NDArray[np.int64], num: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much the bit error rate of `num` sub-fingerprints is over their threshold."""
    return num_wrong / (32 * np.maximum(num, 1)) - threshold(num)


def _is_alike(num_wrong: NDArray[np.int64], num: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether at most `MOST_WRONG` of the bits differ, and there are any."""
    return (num > 0) & (num_wrong <= MOST_WRONG * 32 * num)


def _energies(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Energy of each window in each band: [num, WINDOW] -> [num, 33]."""
    spectrum = scipy.fft.rfft(windows * _HANN, axis=1)[:, _EDGES[0] : _EDGES[-1]]
    return np.add.reduceat(spectrum.real**2 + spectrum.imag**2, _EDGES[:-1] - _EDGES[0], axis=1)


def _ranges(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from each of `begins` on, `lengths` of each, one range after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(total)
