"""The decoder: every container, rate and channel count gives the same sound; every bad file an error that names it."""

import numpy as np
import pytest
import soundfile

from r1_aqa_repro.data.audio import AudioError, check_audio, load_audio

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


def one_bad_sample(path, value):
    samples = np.zeros(16_000, dtype=np.float32)
    samples[7_000] = value
    soundfile.write(path, samples, 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "reason", "seen_in_header"),
    [
        (lambda path: None, "no such audio file", True),
        (lambda path: path.mkdir(), "no such audio file", True),
        (lambda path: path.write_bytes(bytes(range(256)) * 40), "cannot be decoded", True),
        (lambda path: path.touch(), "cannot be decoded", True),
        (lambda path: soundfile.write(path, np.zeros(0), 16_000), "the audio is empty (0 samples)", True),
        (lambda path: one_bad_sample(path, np.nan), "the audio holds NaN or infinite samples", False),
        (lambda path: one_bad_sample(path, np.inf), "the audio holds NaN or infinite samples", False),
    ],
    ids=["absent", "folder", "garbage", "zero bytes", "no samples", "NaN", "infinity"],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path, make, reason, seen_in_header):
    path = tmp_path / "clip.wav"
    make(path)
    with pytest.raises(AudioError) as error:
        load_audio(path)
    assert error.value.path == path and str(path) in str(error.value) and reason in error.value.reason
    found = check_audio(path)
    assert (found is not None and reason in found) if seen_in_header else found is None


def test_check_of_the_length_reads_seconds_not_samples(tmp_path):
    for rate in (8_000, 48_000):
        soundfile.write(tmp_path / f"{rate}.wav", melody(rate, 0.2), rate)
        assert check_audio(tmp_path / f"{rate}.wav", minimum_seconds=0.2) is None
        verdict = check_audio(tmp_path / f"{rate}.wav", minimum_seconds=0.21)
        assert verdict == "the clip is too short (0.200 s; at least 0.21 s are needed)"
