"""The decoder: what every container gives, and what is wrong with the ones that give nothing."""

import io
import random

import av
import librosa
import numpy as np
import pytest
import soundfile

from data_prep import media
from data_prep.media import MAX_SECONDS, REASONS, Excerpt, MediaError, resample
from r1_aqa_repro.data.audio import SAMPLING_RATE, load_audio
from tests.data_prep.conftest import CONTAINERS, correlation, signal, write_media, write_silent_film

SECONDS = 3.0


def decode(source, channel="first", **part):
    return media.decode(Excerpt(source, **part), channel)


def refusal(*arguments, **options):
    with pytest.raises(MediaError) as caught:
        decode(*arguments, **options)
    assert caught.value.reason in REASONS
    return caught.value


def in_container(folder, ending, seconds=SECONDS, pictures=False):
    rate = CONTAINERS[ending][2]
    samples = signal(rate, seconds)
    path = write_media(folder / f"clip.{ending}", np.stack([samples, -samples]), rate, pictures=pictures)
    return path, samples, rate


@pytest.mark.parametrize("ending", CONTAINERS)
def test_every_container_gives_the_source(ending, tmp_path):
    path, samples, rate = in_container(tmp_path, ending)
    decoded = decode(path)
    assert decoded.dtype == np.float32 and decoded.ndim == 1
    assert abs(len(decoded) / SAMPLING_RATE - SECONDS) < 0.05
    assert correlation(decoded, samples, rate) > 0.9
    assert np.array_equal(decode(path.read_bytes()), decoded)


def test_vorbis_gives_the_source(tmp_path):
    samples = signal(44_100, SECONDS)
    soundfile.write(tmp_path / "clip.ogg", samples, 44_100, format="OGG", subtype="VORBIS")
    decoded = decode(tmp_path / "clip.ogg")
    assert abs(len(decoded) / SAMPLING_RATE - SECONDS) < 0.05
    assert correlation(decoded, samples, 44_100) > 0.9


@pytest.mark.parametrize("ending", CONTAINERS)
def test_a_cut_is_where_it_should_be(ending, tmp_path):
    """Matroska's clock counts milliseconds, so a part is found to one; two would be heard in this noise."""
    path, samples, rate = in_container(tmp_path, ending, seconds=12, pictures=ending in ("mp4", "mkv"))
    part = decode(path, start=7.0, seconds=2.0)
    assert len(part) == 2 * SAMPLING_RATE

    def match(milliseconds):
        return correlation(part, samples[7 * rate + milliseconds * rate // 1000 :], rate)

    assert max(map(match, (-1, 0, 1))) > 0.9
    assert max(map(match, (-3, 3))) < 0.5
    if ending not in ("webm", "mkv"):
        assert match(0) > 0.9


def test_a_cut_gives_what_there_is(tmp_path):
    path, *_ = in_container(tmp_path, "wav")
    assert len(decode(path, start=2.5, seconds=10)) == pytest.approx(0.5 * SAMPLING_RATE, abs=1)
    assert refusal(path, start=2.95, seconds=10).reason == "shorter than 0.1 s"
    assert refusal(path, start=20, seconds=10).reason == "shorter than 0.1 s"
    assert len(decode(path, start=0, seconds=1)) == SAMPLING_RATE


class Pipe(io.BytesIO):
    """What is written cannot be gone back to, so that no header gets to know the length."""

    def seekable(self):
        return False


@pytest.mark.parametrize("ending", ["webm", "mkv", "flac"])
def test_a_file_without_a_length_is_cut_only_where_it_goes_on(ending, tmp_path):
    container_format, codec, rate = CONTAINERS[ending]
    samples, pipe = signal(rate, SECONDS), Pipe()
    with av.open(pipe, "w", format=container_format, options={"live": "1"} if ending != "flac" else {}) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        if codec == "flac":
            stream.format = "s16"
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))  # with the header, before the encoder knows the length
        container.mux(stream.encode(None))
    clip = pipe.getvalue()
    whole = decode(clip)
    assert abs(len(whole) / SAMPLING_RATE - SECONDS) < 0.05
    for start in (1.0, 30.0):  # neither half of it nor none of it
        assert np.array_equal(decode(clip, start=start, seconds=1, cut_over=31), whole)
    assert np.array_equal(decode(clip, start=700, seconds=1, cut_over=701), whole)  # beyond the longest clip, too
    part = decode(clip, start=1.5, seconds=1, cut_over=2.5)
    assert len(part) == SAMPLING_RATE
    # Matroska's clock counts milliseconds
    assert max(correlation(part, samples[int(1.5 * rate) + n * rate // 1000 :], rate) for n in (-1, 0, 1)) > 0.9


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_resampling_is_that_of_training(rate):
    for length in (rate, rate + 1, rate + 7):
        samples = signal(rate, length / rate)
        expected = librosa.resample(samples, orig_sr=rate, target_sr=SAMPLING_RATE, res_type="soxr_hq")
        assert np.array_equal(resample(samples, rate), expected)


@pytest.mark.parametrize("channel", ["first", "mean"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_a_wav_is_what_training_would_read(subtype, channel, tmp_path):
    stereo = np.stack([signal(44_100, 1), signal(44_100, 1, seed=1)], axis=1)
    soundfile.write(tmp_path / "clip.wav", stereo, 44_100, subtype=subtype)
    ours, training = decode(tmp_path / "clip.wav", channel=channel), load_audio(tmp_path / "clip.wav", channel)
    # the mean of two float32 may be rounded otherwise
    assert np.array_equal(ours, training) if channel == "first" else np.allclose(ours, training, atol=1e-6)


def test_many_channels_and_a_high_rate(tmp_path):
    channels = np.stack([signal(192_000, 1, seed) for seed in range(8)])
    soundfile.write(tmp_path / "clip.wav", channels.T, 192_000)
    assert correlation(decode(tmp_path / "clip.wav"), channels[0], 192_000) > 0.9
    assert correlation(decode(tmp_path / "clip.wav", channel="mean"), channels.mean(axis=0), 192_000) > 0.9
    write_media(tmp_path / "clip.flac", channels, 192_000)
    assert correlation(decode(tmp_path / "clip.flac"), channels[0], 192_000) > 0.9


@pytest.mark.parametrize("ending", CONTAINERS)
@pytest.mark.parametrize("named", ["mp4", "wav", "mp3", "txt"])
def test_the_extension_plays_no_part(ending, named, tmp_path):
    path, *_ = in_container(tmp_path, ending, seconds=0.5)
    other = tmp_path / f"other name {named}é.{named}"
    other.write_bytes(path.read_bytes())
    assert np.array_equal(decode(other), decode(path))


@pytest.mark.parametrize("ending", ["mp4", "webm", "mkv", "flac", "wav", "ogg", "mp3"])
def test_a_file_that_breaks_off(ending, tmp_path):
    """Ogg and MP3 do not say how long they are: half of one is a clip of half the length, or cannot be decoded."""
    path, samples, rate = in_container(tmp_path, ending)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    try:
        decoded = decode(path)
    except MediaError as error:
        assert error.reason == "undecodable" and str(path) in error.detail
    else:
        assert ending in ("ogg", "mp3")
        assert 0.5 < len(decoded) / SAMPLING_RATE < SECONDS - 0.5
        assert correlation(decoded, samples, rate) > 0.9


@pytest.mark.parametrize("ending", CONTAINERS)
def test_damaged_bytes_give_samples_or_a_reason(ending, tmp_path):
    """Neither another error nor a crash: bytes are changed all over, or in the header, or are missing at the end."""
    path, *_ = in_container(tmp_path, ending, seconds=1)
    whole, rng = path.read_bytes(), random.Random(0)
    reasons = set()
    for number in range(40):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 5, 50, 500])):
            damaged[rng.randrange(len(whole) if number % 2 else 300)] = rng.randrange(256)
        part = {"start": 0.4, "seconds": 0.3} if number % 3 else {}
        content = bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])])
        try:
            assert np.isfinite(decode(content, **part)).all()
        except MediaError as error:
            reasons.add(error.reason)
    assert reasons and reasons < set(REASONS)


def samples(path, values, rate=16_000, subtype="FLOAT"):
    soundfile.write(path, values, rate, format="WAV", subtype=subtype)


def with_one(value, rate):
    noise = signal(rate, 1)
    noise[rate // 2] = value
    return noise


def two_mp3s(path):
    """MP3s can be put one behind the other; PyAV's queue would read samples that are not there."""
    sound = signal(44_100, 1)
    parts = [write_media(path.with_name(f"{len(s)}.mp3"), np.stack(s), 44_100) for s in ([sound], [sound, sound])]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


UNUSABLE = {
    "absent": (lambda path: None, "missing", ""),
    "a folder": (lambda path: path.mkdir(), "undecodable", ""),
    "empty": (lambda path: path.touch(), "undecodable", ""),
    "a playlist": (lambda path: path.write_text("ffconcat version 1.0\nfile x.wav\n"), "undecodable", "(ffconcat)"),
    "AU": (lambda path: soundfile.write(path, signal(16_000, 1), 16_000, format="AU"), "undecodable", "none of wav"),
    "1e30": (lambda path: samples(path, with_one(1e30, 16_000)), "undecodable", "1e+30"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "undecodable", ""),
    "noise behind a tag": (lambda path: path.write_bytes(b"fLaC" + b"\xff" * 900), "undecodable", ""),
    "channels that change": (two_mp3s, "undecodable", "channels"),
    "a silent film": (write_silent_film, "no audio track", ""),
    "NaN": (lambda path: samples(path, with_one(np.nan, 16_000)), "undecodable", "NaN"),
    "infinity": (lambda path: samples(path, with_one(np.inf, 16_000)), "undecodable", "NaN"),
    "-infinity, resampled": (lambda path: samples(path, with_one(-np.inf, 44_100), 44_100), "undecodable", "NaN"),
    "silence": (lambda path: samples(path, np.zeros(16_000)), "silent", ""),
    "too short": (lambda path: samples(path, signal(16_000, 0.09)), "shorter than 0.1 s", ""),
    "too long": (
        lambda path: samples(path, np.full(int(8_000 * (MAX_SECONDS + 1)), 1000, np.int16), 8_000, "PCM_16"),
        "undecodable",
        "too long",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_gives_no_clip_is_named_with_the_reason(name, tmp_path):
    make, reason, said = UNUSABLE[name]
    path = tmp_path / "clip.mp4"
    make(path)
    found = refusal(path)
    assert found.reason == reason and str(path) in found.detail and said in found.detail
    if path.is_file():
        assert refusal(path.read_bytes()).reason == reason


def test_what_is_just_long_and_loud_enough_or_a_part_of_a_long_recording_is_a_clip(tmp_path):
    samples(tmp_path / "faint.wav", signal(16_000, 0.1) * 0.01)
    assert len(decode(tmp_path / "faint.wav")) == 1600
    UNUSABLE["too long"][0](tmp_path / "long.wav")
    assert len(decode(tmp_path / "long.wav", start=500, seconds=10)) == 10 * SAMPLING_RATE


def test_an_unknown_channel_is_refused():
    with pytest.raises(ValueError, match="channel"):
        decode(b"", channel="left")
