"""The decoder: every container, rate and channel count gives the same sound; every bad file an error that names it."""

import numpy as np
import pytest
import soundfile

from r1_aqa_repro.data.audio import AudioError, CutOff, check_audio, load_audio, measure_audio
from tests.bad_clips import BAD_CLIPS

SECONDS = 0.6


def melody(rate: int, seconds: float = SECONDS) -> np.ndarray:
    """Half a tone of 440 Hz, half one of 620 Hz: [num_samples]; the change of pitch shows a shift in time."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * np.where(time < seconds / 2, 440, 620) * time)


def best_correlation(decoded: np.ndarray, source: np.ndarray, max_shift: int) -> float:
    """Largest normalised correlation over shifts of up to `max_shift` samples: encoders add a delay."""
    products = np.correlate(decoded, source, mode="full")
    middle = len(source) - 1  # no shift
    window = products[middle - max_shift : middle + max_shift + 1]
    return float(window.max() / (np.linalg.norm(decoded) * np.linalg.norm(source)))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(
    ("suffix", "channels"),
    [
        *[(suffix, channels) for suffix in ("wav", "flac", "ogg") for channels in (1, 2, 8)],
        *[("mp3", channels) for channels in (1, 2)],  # it holds no more
    ],
)
def test_every_format_sounds_the_same(tmp_path, suffix, rate, channels):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, np.repeat(melody(rate)[:, None], channels, axis=1), rate)
    for channel in ("first", "mean"):
        decoded = load_audio(path, channel)
        assert decoded.dtype == np.float32 and decoded.ndim == 1 and decoded.flags.c_contiguous
        assert abs(len(decoded) / 16_000 - SECONDS) <= 0.05
        assert best_correlation(decoded, melody(16_000), max_shift=800) > 0.9
        assert 0.3 < np.abs(decoded[2000:4000]).max() < 0.5  # the loudness of the source


@pytest.mark.parametrize(
    ("subtype", "error"), [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 0.0), ("DOUBLE", 1e-7)]
)
def test_a_file_at_16_khz_is_taken_sample_by_sample_in_every_sample_format(tmp_path, subtype, error):
    samples = melody(16_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype=subtype)
    decoded = load_audio(tmp_path / "a.wav")
    assert decoded.shape == samples.shape and np.abs(decoded - samples).max() <= error


def test_first_channel_and_mean(tmp_path):
    samples = np.array([[0.5, 0.25, 0.0], [0.5, -0.5, 0.75]] * 100, dtype=np.float32)  # [200, 3]
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert np.allclose(load_audio(tmp_path / "a.wav", "first"), 0.5)
    assert np.allclose(load_audio(tmp_path / "a.wav", "mean"), 0.25)
    assert np.array_equal(load_audio(tmp_path / "a.wav"), load_audio(tmp_path / "a.wav", "first"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ein schöner Ton – 音 'a' [1].flac", "FLAC"),
        ("upper.WAV", "WAV"),
        ("no extension", "WAV"),
        ("clip.wav", "FLAC"),
        ("clip.mp3", "WAV"),
        ("clip.flac", "OGG"),
        ("clip.wav", "MP3"),
    ],
)
def test_the_content_counts_not_the_name(tmp_path, name, content):
    path = tmp_path / name
    soundfile.write(path, melody(16_000), 16_000, format=content)
    assert abs(len(load_audio(path)) / 16_000 - SECONDS) <= (0.05 if content in ("OGG", "MP3") else 0)
    assert np.array_equal(load_audio(str(path)), load_audio(path))
    assert check_audio(path) is None


@pytest.mark.parametrize(
    ("make", "reason", "seen_in_header"),
    [
        ("deleted", "no such audio file", True),
        ("folder", "cannot be read (it is a folder, not a file)", True),
        ("pipe", "cannot be read (it is a pipe, not a file)", True),
        ("text", "it is text, not a recording", True),
        ("picture", "cannot be decoded (it begins as no wav", True),
        ("empty", "cannot be decoded", True),
        ("header of more samples than memory", "its header says 4,294,967,295 samples at 16,000 Hz: too many", True),
        ("no samples", "the audio is empty (0 samples)", True),
        ("NaN", "the audio holds NaN or infinite samples", False),
        ("infinity", "the audio holds NaN or infinite samples", False),
        ("1e30", "the audio holds samples of 1e+30, where full scale is 1", False),
        ("flac cut off", "cannot be decoded", False),
        ("wav cut off", "it is cut off: 19,182 of the 32,000 bytes of its header are there", False),
        ("header of twice the samples", "it is cut off: 32,000 of the 64,000 bytes of its header are there", False),
        ("aiff cut off", "it is cut off: 19,", False),
        ("rf64 cut off", "of the 16,000 samples of its header are there", False),
        ("mp3 cut off", "of the 16,000 samples of its header are there", False),
        ("ogg cut off in its last page", "it is cut off: the last page of an Ogg stream is not there", False),
        ("opus cut off", "it is cut off: the last page of an Ogg stream is not there", False),
    ],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path, make, reason, seen_in_header):
    path = tmp_path / "clip.wav"
    soundfile.write(path, melody(16_000), 16_000)
    BAD_CLIPS[make](path)
    with pytest.raises(AudioError) as error:
        load_audio(path)
    assert error.value.path == path and str(path) in str(error.value) and reason in error.value.reason
    assert isinstance(error.value, CutOff) == ("it is cut off" in reason or "of its header are there" in reason)
    found = check_audio(path)
    assert (found is not None and reason in found) if seen_in_header else found is None
    with pytest.raises(AudioError) as decoding:
        measure_audio(path, decode=True)
    assert decoding.value.reason == error.value.reason


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_clip_is_measured_as_it_will_be_heard(tmp_path, kind, rate):
    path = tmp_path / "clip"
    soundfile.write(path, melody(rate), rate, format=kind)
    assert measure_audio(path, decode=True) == measure_audio(path) == len(load_audio(path))


def in_a_pipe(wav):
    """As FFmpeg writes it without knowing the length."""
    return wav[:4] + b"\xff" * 4 + wav[8:40] + b"\xff" * 4 + wav[44:]


@pytest.mark.parametrize(
    "change",
    [
        in_a_pipe,
        lambda wav: wav + b"LIST" + (4).to_bytes(4, "little") + b"INFO",  # a chunk after the samples
        lambda wav: wav + bytes(100),
        lambda wav: wav[:4] + (len(wav) + 4).to_bytes(4, "little") + wav[8:],  # the size of the whole, not of the rest
    ],
    ids=["length unknown", "chunk behind", "zeros behind", "size of the whole"],
)
def test_a_header_that_is_merely_odd_is_no_loss(tmp_path, change):
    path = tmp_path / "clip.wav"
    soundfile.write(path, melody(16_000), 16_000)
    whole = load_audio(path)
    path.write_bytes(change(path.read_bytes()))
    assert np.array_equal(load_audio(path), whole)


def test_a_flac_from_a_pipe_is_not_said_to_be_endless(tmp_path):
    path = tmp_path / "clip.flac"
    soundfile.write(path, melody(16_000), 16_000)
    flac = bytearray(path.read_bytes())
    flac[21] &= 0xF0  # the 36 bits of the number of samples
    flac[22:26] = bytes(4)
    path.write_bytes(flac)
    for decode in (False, True):
        with pytest.raises(AudioError, match="its header does not say how long it is"):
            measure_audio(path, decode=decode)


def test_check_of_the_length_reads_seconds_not_samples(tmp_path):
    for rate in (8_000, 48_000):
        soundfile.write(tmp_path / f"{rate}.wav", melody(rate, 0.2), rate)
        assert check_audio(tmp_path / f"{rate}.wav", minimum_seconds=0.2) is None
        verdict = check_audio(tmp_path / f"{rate}.wav", minimum_seconds=0.21)
        assert verdict == "the clip is too short (0.200 s; at least 0.21 s are needed)"
