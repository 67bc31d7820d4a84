"""The preparation's benchmark: what it times is work that was done."""

import pytest

from scripts.bench_data_prep import KINDS, SECONDS, main, make_clips, measure, with_decode, with_pyav


@pytest.mark.parametrize("kind", KINDS)
def test_both_decoders_do_the_same_work(kind, tmp_path):
    (clip,) = make_clips(tmp_path / "media", kind, 1)
    # AAC and Opus pad their last frame: of 1,024 or 960 samples, under 25 ms
    assert with_decode(clip) == pytest.approx(16_000 * SECONDS, abs=400)
    assert with_pyav(clip) == pytest.approx(with_decode(clip), abs=400)


def test_the_figures(tmp_path):
    files = make_clips(tmp_path / "media", "wav", 12)
    figures = measure(files, tmp_path / "out", workers=1, repeats=1)
    speeds, ratio = figures["clips_per_second"], figures["ratio"]
    assert set(speeds) == {"pyav", "decode", "flac", "wav"} and min(speeds.values()) > 0
    assert ratio["flac / pyav"]["median"] == pytest.approx(speeds["flac"] / speeds["pyav"], rel=0.02)  # both rounded
    assert len(list((tmp_path / "out" / "audio").iterdir())) == 12


def test_an_empty_folder(tmp_path):
    assert main(["--media", str(tmp_path)]) == 2
