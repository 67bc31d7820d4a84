"""Time a preparation against its decoder alone: the same files, the same number of worker processes.

    python scripts/bench_data_prep.py --clips 400 --workers 2 --json prep.json

    pyav      the decoder alone: PyAV decodes each file and FFmpeg resamples it to 16 kHz mono; nothing is written
    decode    `data_prep.media.decode` alone, whose resampling is that of training; nothing is written
    flac, wav the whole of `data_prep.pipeline.prepare`, from the start of its workers to the manifest

All are run in turn, so that what else the machine does hits each; the ratios are medians over the repetitions. The
clips are 10 seconds as in VGGSound's mirrors (H.264's place is taken by MPEG-4: the pictures are only skipped), or the
files of --media.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `data_prep` and `r1_aqa_repro` also without an installation

import av
import numpy as np

from data_prep.media import Excerpt, decode
from data_prep.media_index import MEDIA_ENDINGS
from data_prep.pipeline import FORMATS, Making, Record, prepare
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.questions import AudioQuestion

SECONDS = 10
DISTINCT = 10  # clips that are encoded; the others are copies
# ending: audio codec, container, sampling rate in Hz
KINDS = {
    "mp4": ("aac", "mp4", 44_100),
    "webm": ("libopus", "webm", 48_000),
    "flac": ("flac", "flac", 44_100),
    "wav": ("pcm_s16le", "wav", 44_100),
}


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = Options(__doc__)
    add = parser.add_argument
    add("--kind", choices=KINDS, default="mp4", help="of the clips that are made (default: mp4)")
    add("--media", type=Path, metavar="DIR", help="take the files in this folder instead")
    add("--clips", type=int, default=400, metavar="N", help="how many (default: 400)")
    add("--workers", type=int, default=2, metavar="N", help="worker processes (default: 2)")
    add("--repeats", type=int, default=3, metavar="N", help="of each (default: 3)")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.media is None:
            files = make_clips(folder / "media", arguments.kind, arguments.clips)
        else:
            found = (path for path in arguments.media.rglob("*") if path.suffix.lower() in MEDIA_ENDINGS)
            files = sorted(found)[: arguments.clips]
        if not files:
            raise Refused.because(str(arguments.media), "there is no media file", "Give another folder.")
        figures = measure(files, folder / "out", arguments.workers, arguments.repeats)
    figures |= {"kind": "own files" if arguments.media else arguments.kind, "av": av.__version__}
    for name, speed in figures["clips_per_second"].items():
        say(f"{name:7} {speed:8.1f} clips/s")
    for name, ratio in figures["ratio"].items():
        say(f"{name:14} {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    if arguments.json:
        write_json(arguments.json, figures)
    return EXIT_DONE


def measure(files: list[Path], out: Path, workers: int, repeats: int) -> dict[str, Any]:
    """Clips per second (medians) of each, and the preparations' ratios to the decoders."""
    speeds: dict[str, list[float]] = {name: [] for name in ("pyav", "decode", *FORMATS)}
    with multiprocessing.get_context("spawn").Pool(workers) as pool:  # not the preparation's own fork server

        def alone(work: Callable[[Path], int]) -> float:
            began = time.perf_counter()
            for _ in pool.imap_unordered(work, files, chunksize=4):
                pass
            return len(files) / (time.perf_counter() - began)

        alone(with_decode)  # the workers start and the files come into memory
        for _ in range(repeats):
            speeds["pyav"].append(alone(with_pyav))
            speeds["decode"].append(alone(with_decode))
            for audio_format in FORMATS:
                speeds[audio_format].append(_preparation(files, out, workers, audio_format))
    ratio = {}
    for audio_format in FORMATS:
        for decoder in ("pyav", "decode"):
            ratios = [ours / alone for ours, alone in zip(speeds[audio_format], speeds[decoder], strict=True)]
            spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
            ratio[f"{audio_format} / {decoder}"] = {key: round(value, 3) for key, value in spread.items()}
    medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    return {"clips": len(files), "workers": workers, "clips_per_second": medians, "ratio": ratio}


def with_pyav(file: Path) -> int:
    """Decode with PyAV and FFmpeg's resampler; returns the number of samples."""
    with av.open(str(file)) as container:
        resampler = av.AudioResampler("s16", "mono", SAMPLING_RATE)
        parts = []
        for frame in container.decode(audio=0):
            parts += [part.to_ndarray() for part in resampler.resample(frame)]
        parts += [part.to_ndarray() for part in resampler.resample(None)]
    return int(np.concatenate(parts, axis=1).size)


def with_decode(file: Path) -> int:
    """Decode as the preparation does; returns the number of samples."""
    return len(decode(file))


def _preparation(files: list[Path], out: Path, workers: int, audio_format: str) -> float:
    shutil.rmtree(out, ignore_errors=True)
    records = (
        Record(AudioQuestion(str(n), Path(), "What is heard?", ("a", "b"), None), Excerpt(file), stem=str(n))
        for n, file in enumerate(files)
    )
    began = time.perf_counter()
    report = prepare(records, out, Making(workers, format=audio_format), settings={})
    return report.clips_decoded / (time.perf_counter() - began)


def make_clips(folder: Path, kind: str, number: int) -> list[Path]:
    """Write clips of noise with a moving colour; an MP4 gets pictures of some 640 x 360 too."""
    folder.mkdir(parents=True)
    codec, container_format, rate = KINDS[kind]
    generator = np.random.default_rng(0)
    files = [folder / f"{n}.{kind}" for n in range(number)]
    for file in files[:DISTINCT]:
        with av.open(str(file), "w", format=container_format) as container:
            if kind == "mp4":
                video = container.add_stream("mpeg4", rate=25, width=640, height=360, pix_fmt="yuv420p")
            stream = container.add_stream(codec, rate=rate, layout="stereo")
            assert isinstance(stream, av.AudioStream)
            for index in range(25 * SECONDS if kind == "mp4" else 0):
                blocks = generator.integers(0, 255, (9, 16, 3), dtype=np.uint8)
                picture = av.VideoFrame.from_ndarray(blocks.repeat(40, axis=0).repeat(40, axis=1), format="rgb24")
                picture.pts = index
                container.mux(video.encode(picture))
            if kind == "mp4":
                container.mux(video.encode(None))
            noise = generator.standard_normal((2, rate * SECONDS)).astype(np.float32)
            smooth = (noise + np.roll(noise, 1, axis=1) + np.roll(noise, 2, axis=1)) * np.float32(0.05)
            frame = av.AudioFrame.from_ndarray(smooth, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
    for n, file in enumerate(files[DISTINCT:]):
        shutil.copy(files[n % DISTINCT], file)
    return files


if __name__ == "__main__":
    main()
