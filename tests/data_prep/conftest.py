"""Media of known content, made with PyAV: what a YouTube download, a mirror or a wav folder would hold."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import soundfile

from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.questions import read_questions
from tests.conftest import ROOT
from tests.files import read_json, read_lines

# ending -> (container, codec, sampling rate of the source)
CONTAINERS = {
    "mp4": ("mp4", "aac", 44_100),
    "m4a": ("ipod", "aac", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "mkv": ("matroska", "libopus", 48_000),
    "ogg": ("ogg", "libopus", 48_000),
    "flac": ("flac", "flac", 44_100),
    "wav": ("wav", "pcm_s16le", 22_050),
    "mp3": ("mp3", "libmp3lame", 44_100),
}


def signal(rate, seconds, seed=0):
    """Noise of a changing loudness below 3 kHz, float32 [num_samples]: no two moments sound alike."""
    generator = np.random.default_rng(seed)
    steps = generator.standard_normal(int(6000 * seconds) + 2)  # 6,000 a second, and straight lines between them
    loudness = generator.uniform(0.05, 0.2, len(steps) // 600 + 2)
    steps *= np.interp(np.arange(len(steps)) / 600, np.arange(len(loudness)), loudness)
    times = np.arange(round(rate * seconds)) / rate
    return np.interp(times * 6000, np.arange(len(steps)), steps).astype(np.float32)


def write_media(path: Path, samples, rate, pictures=False):
    """Encode [num_samples] or [num_channels, num_samples] as the path's ending says."""
    container_format, codec, _ = CONTAINERS[path.suffix[1:]]
    channels = np.atleast_2d(samples)
    layout = {1: "mono", 2: "stereo", 8: "7.1"}[len(channels)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container_format) as container:
        video = _video(container) if pictures else None
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        if codec == "flac":
            stream.format = "s16"
        packed = np.ascontiguousarray(channels.T).reshape(1, -1)  # PyAV cannot take 8 planes
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        if video:
            container.mux(_pictures(video, round(10 * channels.shape[1] / rate)))
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def _video(container):
    return container.add_stream("mpeg4", rate=10, width=64, height=48, pix_fmt="yuv420p")


def _pictures(video, number):
    packets = []
    for index in range(number):
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index % 256, np.uint8), format="rgb24")
        picture.pts = index
        packets += video.encode(picture)
    return [*packets, *video.encode(None)]


def write_silent_film(path: Path):
    """An MP4 with pictures and no audio track."""
    with av.open(str(path), "w", format="mp4") as container:
        container.mux(_pictures(_video(container), 10))
    return path


def correlation(prepared, source, rate):
    """Pearson's, of samples at 16 kHz and a source at `rate`, over what both have."""
    times = np.arange(len(prepared)) / SAMPLING_RATE
    expected = np.interp(times, np.arange(len(source)) / rate, source)
    return float(np.corrcoef(prepared, expected)[0, 1])


def wav(path, seconds=0.5, seed=0):
    """Mono noise at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, signal(SAMPLING_RATE, seconds, seed), SAMPLING_RATE)
    return path


def write_tar(path, files, compression=""):
    """files: (name, bytes) or TarInfo"""
    with tarfile.open(path, f"w:{compression}") as archive:
        for entry in files:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size, info.mtime = len(entry[1]), 1_700_000_000
                archive.addfile(info, io.BytesIO(entry[1]))
    return path


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def report_of(out):
    """The report of a preparation, in which every record is accounted for."""
    report = read_json(out / "prep_report.json")
    assert report["kept"] + sum(map(len, report["dropped"].values())) == report["records_in"]
    return report


def result(out):
    """All that a preparation of audio leaves, but for how long it took."""
    files = {path.name: path.read_bytes() for path in (out / "audio").iterdir()}
    timeless = {key: value for key, value in report_of(out).items() if not key.startswith(("seconds", "clips_"))}
    return (out / "manifest.jsonl").read_bytes(), files, timeless


class Prepared:
    """What a test prepares in a folder: `out` is below it, and a subclass has a `run` that fills it."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "out"

    @property
    def lines(self):
        return read_lines(self.out / "manifest.jsonl")

    @property
    def questions(self):
        read = read_questions(self.out / "manifest.jsonl")
        assert not read.problems
        return read.records

    @property
    def report(self):
        return report_of(self.out)


def peak_of(module, *arguments):
    """MB of a command at the highest; resource.getrusage would begin with what the process that started it had."""
    peak = "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024)"
    code = f"import sys; from {module} import main; assert main(sys.argv[1:]) == 0; {peak}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def avqa_record(number, video_name, **changed):
    """A record as AVQA's annotations have it."""
    return {
        "id": number,
        "video_name": video_name,
        "video_id": 341,
        "question_text": "What happened in the video?",
        "multi_choice": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
        "answer": 1,
        "question_relation": "View",
        "question_type": "Happening",
        **changed,
    }


def mmau_record(index, **changed):
    """A record as MMAU's files have it."""
    name = f"{index:08x}-é 音"
    return {
        "id": name,
        "audio_id": f"./test-mini-audios/{name}.wav",
        "question": f"What is heard in {index}?",
        "choices": ["Man", "Woman", "Child", "Robot"],
        "answer": ("Man", "Woman", "Child", "Robot")[index % 4],
        "dataset": "AudioSet",
        "task": ("sound", "music", "speech")[index % 3],
        "split": "test-mini",
        "category": ["Reasoning"] if index == 1 else "Reasoning",
        "sub-category": "Acoustic Source Inference",
        "difficulty": "medium",
        **changed,
    }
