"""The decoder: every container, rate and channel count gives the same sound; every bad file an error that names it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from r1_aqa_repro.data.audio import AudioError, check_audio, load_audio, silence_like

SECONDS = 0.6


def melody(rate: int, seconds: float = SECONDS) -> np.ndarray:
    """Half a tone of 440 Hz, half one of 620 Hz: [num_samples]; the change of pitch shows a shift in time."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * np.where(time < seconds / 2, 440, 620) * time)


def best_correlation(heard: np.ndarray, source: np.ndarray, max_shift: int) -> float:
    """Largest normalised correlation over shifts of up to `max_shift` samples: encoders add a delay."""
    products = np.correlate(heard, source, mode="full")
    middle = len(source) - 1  # no shift
    window = products[middle - max_shift : middle + max_shift + 1]
    return float(window.max() / (np.linalg.norm(heard) * np.linalg.norm(source)))


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
        heard = load_audio(path, channel)
        assert heard.dtype == np.float32 and heard.ndim == 1 and heard.flags.c_contiguous
        assert abs(len(heard) / 16_000 - SECONDS) <= 0.05
        assert best_correlation(heard, melody(16_000), max_shift=800) > 0.9
        assert 0.3 < np.abs(heard[2000:4000]).max() < 0.5  # the loudness of the source


def test_a_file_at_16_khz_is_taken_sample_by_sample(tmp_path):
    samples = melody(16_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert np.array_equal(load_audio(tmp_path / "a.wav"), samples)


@pytest.mark.parametrize(
    ("subtype", "error"), [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 0.0), ("DOUBLE", 1e-7)]
)
def test_sample_formats_have_the_same_amplitude(tmp_path, subtype, error):
    samples = melody(16_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype=subtype)
    assert np.abs(load_audio(tmp_path / "a.wav") - samples).max() <= error


def test_first_channel_and_mean(tmp_path):
    samples = np.array([[0.5, 0.25, 0.0], [0.5, -0.5, 0.75]] * 100, dtype=np.float32)  # [200, 3]
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert np.allclose(load_audio(tmp_path / "a.wav", "first"), 0.5)
    assert np.allclose(load_audio(tmp_path / "a.wav", "mean"), 0.25)
    assert np.array_equal(load_audio(tmp_path / "a.wav"), load_audio(tmp_path / "a.wav", "first"))
    with pytest.raises(ValueError, match="channel must be one of"):
        load_audio(tmp_path / "a.wav", "left")


@pytest.mark.parametrize("name", ["ein schöner Ton – 音 'a' [1].flac", "upper.WAV", "no extension"])
def test_names(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, melody(16_000), 16_000, format="FLAC" if "flac" in name else "WAV")
    assert len(load_audio(path)) == 9_600
    assert len(load_audio(str(path))) == 9_600
    assert check_audio(path) is None


@pytest.mark.parametrize(("content", "suffix"), [("FLAC", "wav"), ("WAV", "mp3"), ("OGG", "flac"), ("MP3", "wav")])
def test_the_content_counts_not_the_extension(tmp_path, content, suffix):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, melody(16_000), 16_000, format=content)
    assert abs(len(load_audio(path)) / 16_000 - SECONDS) <= 0.05
    assert check_audio(path) is None


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "garbage":
        path.write_bytes(bytes(range(256)) * 40)
    elif kind == "zero bytes":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), 16_000)
    elif kind in ("nan", "inf"):
        samples = np.zeros(16_000, dtype=np.float32)
        samples[7_000] = float(kind)
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("kind", "reason", "seen_in_header"),
    [
        ("missing", "no such audio file", True),
        ("folder", "no such audio file", True),
        ("garbage", "cannot be decoded", True),
        ("zero bytes", "cannot be decoded", True),
        ("no samples", "the audio is empty (0 samples)", True),
        ("nan", "the audio holds NaN or infinite samples", False),
        ("inf", "the audio holds NaN or infinite samples", False),
    ],
)
def test_a_bad_file_is_named(tmp_path, kind, reason, seen_in_header):
    path = bad_file(tmp_path, kind)
    with pytest.raises(AudioError) as error:
        load_audio(path)
    assert error.value.path == path
    assert str(path) in str(error.value)
    assert reason in error.value.reason
    found = check_audio(path)
    assert (found is not None and reason in found) if seen_in_header else found is None


def test_check_of_the_length_reads_seconds_not_samples(tmp_path):
    for rate in (8_000, 48_000):
        soundfile.write(tmp_path / f"{rate}.wav", melody(rate, 0.2), rate)
        assert check_audio(tmp_path / f"{rate}.wav", minimum_seconds=0.2) is None
        verdict = check_audio(tmp_path / f"{rate}.wav", minimum_seconds=0.21)
        assert verdict == "the clip is too short (0.200 s; at least 0.21 s are needed)"


def test_silence_has_the_length_and_type_of_the_clip():
    samples = melody(16_000).astype(np.float32)
    silence = silence_like(samples)
    assert silence.shape == samples.shape and silence.dtype == samples.dtype
    assert not silence.any() and samples.any()
