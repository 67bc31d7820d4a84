"""Fingerprints of recordings: their bits by hand, what they survive, and that different recordings do not match."""

import math

import numpy as np
import pytest
import soundfile
import soxr

from data_prep import haitsma_kalker
from data_prep.haitsma_kalker import BLOCK, HOP, RATE, SHORTEST, WINDOW, Index, Match, confirmed, fingerprint, threshold
from data_prep.media import Excerpt, decode
from r1_aqa_repro.data.audio import SAMPLING_RATE, load_audio
from r1_aqa_repro.embedded.question_set import make_question
from tests.data_prep.conftest import write_media
from tests.real_parts import real_part

TIMES = np.arange(2 * SAMPLING_RATE) / SAMPLING_RATE


def scene(seed, clips=5):
    """Embedded clips on end, each with its hiss: about 13 seconds, float32."""
    return np.concatenate([make_question(seed, "train", index)[1] for index in range(clips)])


@pytest.fixture(scope="module")
def scenes():
    return [scene(seed) for seed in range(8)]


class Known:
    """Clips among which others are looked for, and what is found is confirmed."""

    def __init__(self, clips):
        self.clips = clips
        self.prints = [fingerprint(clip) for clip in clips]
        self.index = Index(self.prints)

    def matches(self, samples):
        alike = self.index.matches(fingerprint(samples))
        found = [confirmed(match, samples, self.clips[match.clip]) for match in alike]
        return [match for match in found if match]


@pytest.fixture(scope="module")
def known(scenes):
    return Known(scenes)


def band(number):
    """The middle of one of the 33 bands, in Hz."""
    edges = np.geomspace(haitsma_kalker.LOWEST, haitsma_kalker.HIGHEST, 34)
    return math.sqrt(edges[number] * edges[number + 1])


@pytest.mark.parametrize("number", [1, 10, 30])
def test_a_band_that_grows_sets_its_bit_and_clears_the_one_below(number):
    """Bit m is whether E(m) - E(m + 1) grows: with E(m) bit m does, and bit m - 1, of E(m - 1) - E(m), does not."""
    rising = (TIMES * np.sin(2 * np.pi * band(number) * TIMES)).astype(np.float32)
    for samples, grows in ((rising, True), (rising[::-1], False)):
        bits = fingerprint(np.ascontiguousarray(samples)).bits[10:-10]
        assert np.all((bits >> (31 - number) & 1) == grows)
        assert np.all((bits >> (32 - number) & 1) != grows)


def test_there_is_one_sub_fingerprint_less_than_windows():
    for windows in (2, 3, 100):
        seconds = ((windows - 1) * HOP + WINDOW) / RATE
        samples = np.random.default_rng(0).standard_normal(round(seconds * SAMPLING_RATE)).astype(np.float32)
        assert len(fingerprint(samples).bits) == windows - 1
        assert len(fingerprint(samples[:-2]).bits) == windows - 2


def test_gain_and_polarity_do_not_show(scenes):
    one = fingerprint(scenes[0])
    for gain in (2.0**-6, -1.0, 4.0):  # exact in floating point, so that the bits are the same too
        other = fingerprint(scenes[0] * np.float32(gain))
        assert np.array_equal(one.bits, other.bits) and np.array_equal(one.sounding, other.sounding)


def test_a_shift_by_hops_shifts_the_bits(scenes):
    one, later = fingerprint(scenes[0]), fingerprint(scenes[0][5 * 2 * HOP :])
    # but for bits near 0 and what the resampling filter knows of the beginning
    assert np.bitwise_count(one.bits[5:] ^ later.bits).mean() / 32 < 0.002


def test_weak_bits_are_those_whose_difference_is_least():
    """A tone in band 20 leaves the others empty: what is least certain is far from it."""
    tone = np.sin(2 * np.pi * band(20) * TIMES) * (1 + 0.5 * np.sin(2 * np.pi * 3 * TIMES))
    weak = fingerprint((tone + 1e-4 * np.random.default_rng(0).standard_normal(len(tone))).astype(np.float32)).weak
    assert np.all(np.bitwise_count(weak) == 1)
    assert np.all(np.bitwise_count(np.bitwise_or.reduce(weak, axis=1)) == 3)
    assert not np.any(weak & np.uint32(0b11 << (31 - 20)))


def test_what_is_quiet_is_not_compared():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(3 * SAMPLING_RATE).astype(np.float32)
    noise[SAMPLING_RATE : 2 * SAMPLING_RATE] *= 1e-4
    sounding = fingerprint(noise).sounding
    quiet = np.flatnonzero(~sounding)
    # windows that lie in the quiet second wholly, and sub-fingerprints need two; resampling smears by some ms
    begin, end = RATE / HOP, (2 * RATE - WINDOW) / HOP
    assert begin - 3 <= quiet[0] <= begin + 3 and end - 3 <= quiet[-1] <= end + 3
    assert not fingerprint(np.zeros(SAMPLING_RATE, np.float32)).sounding.any()


def test_thresholds_keep_the_distance_in_standard_deviations():
    assert threshold(BLOCK) == threshold(10 * BLOCK) == 0.35
    assert threshold(SHORTEST) == pytest.approx(0.5 - 0.15 * 2)  # a quarter of the bits, twice the deviation
    assert threshold(SHORTEST - 1) < 0
    # the paper's false positives: half the complement of the error function at 6.4
    assert (0.5 - 0.35) / haitsma_kalker.DEVIATION / math.sqrt(2) == pytest.approx(6.4, abs=0.01)


def through_file(name, rate=SAMPLING_RATE, **options):
    def change(samples, folder):
        samples = soxr.resample(samples, SAMPLING_RATE, rate) if rate != SAMPLING_RATE else samples
        soundfile.write(folder / name, samples, rate, **options)
        return load_audio(folder / name)

    return change


def through_media(name, rate):
    def change(samples, folder):
        return decode(Excerpt(write_media(folder / name, soxr.resample(samples, SAMPLING_RATE, rate), rate)), "first")

    return change


def in_stereo(channel):
    """The clip on the right, quieter on the left, under other sounds of each side."""

    def change(samples, folder):
        own = 0.02 * np.random.default_rng(1).standard_normal((len(samples), 2)).astype(np.float32)
        soundfile.write(folder / "stereo.wav", samples[:, None] * np.float32([0.4, 1.0]) + own, SAMPLING_RATE)
        return load_audio(folder / "stereo.wav", channel)

    return change


CHANGES = {
    "as it is": lambda samples, _: samples,
    "8 bits": through_file("clip.wav", subtype="PCM_U8"),
    "44.1 kHz": through_file("clip.wav", 44_100, subtype="PCM_16"),
    "8 kHz": through_file("clip.wav", 8_000, subtype="PCM_16"),
    "MP3": through_file("clip.mp3", compression_level=0.7),
    "MP3 at 44.1 kHz": through_file("clip.mp3", 44_100, compression_level=0.9),
    "Ogg Vorbis": through_file("clip.ogg", compression_level=0.8, subtype="VORBIS"),
    "Ogg Opus": through_file("clip.ogg", compression_level=0.9, subtype="OPUS"),
    "AAC": through_media("clip.m4a", 44_100),
    "much quieter": lambda samples, _: samples * np.float32(0.013),
    "clipped": lambda samples, _: np.clip(samples * 3, -0.5, 0.5).astype(np.float32),
    "the first channel": in_stereo("first"),
    "the mean of both": in_stereo("mean"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_recording_is_known_again_though_it_was_changed(change, scenes, known, tmp_path):
    """Each is found, and nothing else is; cut at a place that is no multiple of the hop."""
    for number in (1, 5):
        start = 31_415  # samples: 1.963 s
        cut = scenes[number][start : start + 10 * SAMPLING_RATE]
        (match,) = known.matches(change(cut, tmp_path))
        assert match.clip == number
        # lossy codecs delay by up to 50 ms, which some decoders leave in
        assert match.offset == pytest.approx(-start / SAMPLING_RATE, abs=0.06)
        assert match.bit_error_rate <= match.threshold <= 0.35
        assert match.seconds > 3


@pytest.mark.parametrize(("begin", "seconds"), [(0.0, 4.0), (5.2, 4.0), (3.0, 1.5), (10.3, 2.4)])
def test_a_part_is_found_where_it_is(begin, seconds, scenes, known):
    """The part stands after 3 s of another scene, as in an edit; 1.5 and 2.4 s are under a block."""
    samples = slice(round(begin * SAMPLING_RATE), round((begin + seconds) * SAMPLING_RATE))
    other = scene(99, 2)
    lead = other[: 3 * SAMPLING_RATE] if seconds > 3 else other[:0]
    (match,) = known.matches(np.concatenate([lead, scenes[2][samples]]))
    lead_seconds = len(lead) / SAMPLING_RATE
    assert match.clip == 2
    assert match.offset == pytest.approx(lead_seconds - begin, abs=0.02)
    # the ends are those of 64 sub-fingerprints over 1.15 s of which 35 % may differ: two thirds of it may be foreign
    assert match.start == pytest.approx(lead_seconds, abs=1.0)
    assert match.seconds == pytest.approx(seconds, abs=1.2)


def test_two_cuts_of_one_recording_are_found_by_what_they_share(scenes):
    """0 to 7 s and 5 to 12 s, in 2 s of which they overlap: under a block."""
    first, second = scenes[4][: 7 * SAMPLING_RATE], scenes[4][5 * SAMPLING_RATE : 12 * SAMPLING_RATE]
    (match,) = Known([second]).matches(first)
    assert match.offset == pytest.approx(5.0, abs=0.01)
    assert match.seconds == pytest.approx(2.0, abs=0.05)
    assert match.threshold < 0.35


def vowels(number):
    """Clips of one kind of embedded sound: sung vowels, of which fingerprints alone confuse some."""
    families = [make_question(0, "train", place)[0]["sub_category"] for place in range(12)]  # which follow in turn
    place = families.index("vowel")
    return [make_question(0, "train", place + turn * len(families))[1] for turn in range(number)]


def test_200_different_clips_of_one_kind_do_not_match():
    known = Known(vowels(200))
    alike = [[match.clip for match in known.index.matches(one)] for one in known.prints]
    assert sum(map(len, alike)) > 200, "there is nothing to confirm"
    found = [[match.clip for match in known.matches(clip)] for clip in known.clips]
    assert found == [[place] for place in range(200)]


def test_different_clips_of_all_kinds_do_not_match():
    known = Known([make_question(1, "train", index)[1] for index in range(120)])
    comparable = [place for place, one in enumerate(known.prints) if one.is_comparable]
    assert len(comparable) > 110
    assert all([match.clip for match in known.matches(known.clips[place])] == [place] for place in comparable)


@pytest.mark.parametrize(("shift", "polarity"), [(0, 1), (100, 1), (-100, -1)])
def test_samples_confirm_a_match_and_its_offset(shift, polarity, scenes):
    """Fingerprints know the offset to 12 ms: `shift` samples at 8 kHz are added to it, and taken off again."""
    here, there = scenes[0], polarity * scenes[0][16_000:]
    thought = Match(0, 2.0, 1.0 + shift / RATE, 3.0, 0.1, 0.35)
    match = confirmed(thought, here, there)
    assert match.offset == pytest.approx(1.0, abs=1e-4)
    assert match.correlation == pytest.approx(1.0, abs=0.05)  # of stretches that are cut 12 ms apart
    assert confirmed(thought, here, scenes[1]) is None


def test_an_index_of_nothing_comparable_finds_nothing(scenes):
    nothing = fingerprint(np.zeros(100, np.float32))
    assert not nothing.is_comparable
    assert Index([nothing, nothing]).matches(fingerprint(scenes[0])) == []
    assert Index([fingerprint(scenes[0])]).matches(nothing) == []


def test_real_recordings_are_known_again_and_not_confused(tmp_path):
    known = Known([load_audio(path) for path in sorted((real_part("clips")).rglob("*.flac"))[::40]])
    comparable = [place for place, one in enumerate(known.prints) if one.is_comparable]
    assert len(comparable) > 50
    assert all([match.clip for match in known.matches(known.clips[place])] == [place] for place in comparable)
    encoded = through_file("clip.ogg", compression_level=0.3, subtype="VORBIS")
    again = [[match.clip for match in known.matches(encoded(known.clips[place], tmp_path))] for place in comparable]
    found = sum(place in clips for place, clips in zip(comparable, again, strict=True))
    assert found > 0.8 * len(comparable)  # what is short and mostly quiet is lost
