"""Tar archives that nobody should trust: every damage is noticed, and nothing unpacks to more than the limits."""

import bz2
import gzip
import lzma
import random
import tarfile

import pytest

from data_prep import archives
from data_prep.archives import unpack
from r1_aqa_repro.common.errors import Refused
from tests.data_prep.conftest import special, write_tar


def base_name(path):
    return path.rpartition("/")[2]


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_a_tar_that_breaks_off_anywhere(tmp_path, compression):
    files = [(f"{index}.wav", random.Random(index).randbytes(1500)) for index in range(3)]
    content = write_tar(tmp_path / "whole.tar", files, compression).read_bytes()
    # with the first of the blocks of zeros at its end all is there; compressed, a checksum follows them
    end = 3 * (512 + 1536) if not compression else len(content)
    for kept in {*range(0, end, 211), 512, 2048, 2049, 4096, end - 1}:
        (tmp_path / "cut.tar").write_bytes(content[:kept])
        with pytest.raises(Refused, match=r"cut.tar"):
            unpack(tmp_path / "cut.tar", tmp_path / "out", lambda path: base_name(path) if path == "1.wav" else None)
    assert unpack(tmp_path / "whole.tar", tmp_path / "out", base_name) == 3
    assert [(tmp_path / "out" / name).read_bytes() for name, _ in files] == [data for _, data in files]


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_tar_that_is_damaged_anywhere(tmp_path, compression):
    """Noise hardly compresses, so that most of a gzip's bytes are the content itself: its checksum alone tells."""
    files = [("a.wav", random.Random(0).randbytes(5000))]
    content = write_tar(tmp_path / "whole.tar", files, compression).read_bytes()
    for place in range(100, len(content), 131):
        (tmp_path / "flipped.tar").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(Refused, match=r"flipped.tar"):
            unpack(tmp_path / "flipped.tar", tmp_path / "out", base_name)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_in_several_compressed_streams(tmp_path, compress):
    """As pigz, pbzip2 and `cat` make them."""
    files = [("a.wav", random.Random(0).randbytes(5000)), ("b.wav", b"b" * 700)]
    content = write_tar(tmp_path / "plain.tar", files).read_bytes()
    (tmp_path / "several.tar").write_bytes(compress(content[:3000]) + compress(content[3000:]))
    assert unpack(tmp_path / "several.tar", tmp_path / "out", base_name) == 2
    assert [(tmp_path / "out" / name).read_bytes() for name, _ in files] == [data for _, data in files]


def test_a_damaged_header_is_not_the_end(tmp_path):
    archive = write_tar(tmp_path / "a.tar", [("a.wav", b"a" * 600), ("b.wav", b"b" * 600)])
    content = bytearray(archive.read_bytes())
    content[512 + 1024 + 20] ^= 1  # in the name of the second
    archive.write_bytes(content)
    with pytest.raises(Refused, match="bad checksum"):
        unpack(archive, tmp_path / "out", base_name)


def test_a_tar_bomb(tmp_path, monkeypatch):
    huge = tarfile.TarInfo("a.wav")
    huge.size = 10 * 2**30
    with gzip.open(tmp_path / "bomb.tgz", "wb") as file:
        file.write(huge.tobuf() + bytes(1 << 20))
    many = write_tar(tmp_path / "many.tar", [(f"{index}.txt", bytes(1000)) for index in range(5)])
    header = special("pax", tarfile.XHDTYPE)
    header.size = 2**33
    (tmp_path / "header.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    for archive, named in (("bomb.tgz", "more than"), ("header.tar", "a header claims 8,589,934,592 bytes")):
        with pytest.raises(Refused, match=named):
            unpack(tmp_path / archive, tmp_path / "out", base_name)
    monkeypatch.setattr(archives, "MAX_BYTES", 5000)
    assert unpack(many, tmp_path / "out", lambda path: None) == 0
    for limit, value in (("MAX_BYTES", 4999), ("MAX_MEMBER_BYTES", 999), ("MAX_MEMBERS", 4)):
        with monkeypatch.context() as patch, pytest.raises(Refused, match="unpacks to more"):  # wanted or not
            patch.setattr(archives, limit, value)
            unpack(many, tmp_path / "out", lambda path: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_of_several_files_with_one_name_the_first_counts(tmp_path):
    archive = write_tar(tmp_path / "a.tar", [("x/a.wav", b"one"), ("y/a.wav", b"two"), ("._a.wav", b"three")])
    assert unpack(archive, tmp_path / "out", lambda path: "a.wav" if base_name(path) == "a.wav" else None) == 1
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"one"]
