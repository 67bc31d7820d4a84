"""Tables of labelled clips: every published layout, and every way in which a table can be bad."""

import json

import pytest

from data_prep.folder import Account
from data_prep.label_tables import NO_CLIP, PRESETS, REPEATED, SEVERAL_LABELS, csv_layout, read_clips
from r1_aqa_repro.common.errors import Refused

NAMES = ("path", "label", "family", "recording", "source", "task", "licence")
UNNAMED = dict.fromkeys(NAMES)


def table(folder, content, name="clips.csv"):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def read(file, folder=None, preset=None, **named):
    """(the clips' fields but for where they stand, the account)"""
    account = Account()
    layout = PRESETS[preset] if preset else csv_layout(file, UNNAMED | named, "clips")
    clips = read_clips(file, folder or file.parent, layout, account)
    account.kept = len(clips)
    assert account.kept + sum(map(len, account.dropped.values())) == account.records_in
    return [tuple(getattr(clip, name) for name in NAMES) for clip in clips], account


def test_a_row_has_its_fields_and_its_line(tmp_path):
    file = table(
        tmp_path,
        "\ufefflicence,path,task,family,label,language,source,recording\r\n"
        "\r\n"
        'MIT,"a/1,2.flac",music,instrument,electric_guitar,,fluid,take 1\r\n'
        "CC,b.flac,music,instrument,flute,,fluid,take 2\r\n",
    )
    clips, account = read(file)
    assert clips == [
        ("a/1,2.flac", "electric guitar", "instrument", "take 1", "fluid", "music", "MIT"),
        ("b.flac", "flute", "instrument", "take 2", "fluid", "music", "CC"),
    ]
    assert account.records_in == 2


def test_what_a_table_need_not_have_stands_for_itself(tmp_path):
    file = table(tmp_path, "file,species,who\nx.wav,owl,me\n")
    clips, _ = read(file, path="file", label="species")
    assert clips == [("x.wav", "owl", "species", "x.wav", "clips", "", "")]
    clips, _ = read(file, path="file", label="species", recording="who", source="who")
    assert clips == [("x.wav", "owl", "species", "me", "me", "", "")]


def test_a_row_that_says_the_same_again_is_left_out(tmp_path):
    file = table(tmp_path, "path,label,family\na.wav,dog,animal\na.wav,loud,level\na.wav,dog,animal\n")
    clips, account = read(file)
    assert len(clips) == 2 and account.dropped == {REPEATED: ["line 4"]}


HEADER = "path,label,family,recording\n"
GOOD = "good.wav,good,f,r0\n"
BAD_TABLES = {
    "empty": ("", "clips.csv:", "no records"),
    "header only": (HEADER, "clips.csv:", "no records"),
    "no such column": ("path,name\na.wav,dog\n", "line 1", "no 'label', but 'path', 'name'"),
    "separated by semicolons": ("path;label\na.wav;dog\n", "line 1", "apart by semicolons: save it with commas"),
    "separated by tabs": ("path\tlabel\na.wav\tdog\n", "line 1", "apart by tabs: save it with commas"),
    "a column twice": ("path,label,label\na.wav,dog,dog\n", "line 1", "names 'label' twice"),
    "too few cells": (HEADER + GOOD + "a.wav,dog\n", "line 3", "2 cells, where the header has 4"),
    "too many cells": (HEADER + GOOD + "a.wav,dog, or cat,f,r\n", "line 3", "5 cells"),
    "an open quote": (HEADER + GOOD + 'a.wav,"dog,f,r\nb.wav,cat,f,s\n', "line 3", "no CSV"),
    "text behind a quote": (HEADER + GOOD + 'a.wav,"dog"s,f,r\n', "line 3", "no CSV"),
    "not UTF-8": ((HEADER + GOOD).encode() + "a.wav,chièn,f,r\n".encode("latin-1"), "line 3", "not UTF-8"),
    "no label": (HEADER + GOOD + "a.wav, ,f,r\n", "line 3", "its label is empty"),
    "no path": (HEADER + GOOD + ",dog,f,r\n", "line 3", "its path is empty"),
    "no recording": (HEADER + GOOD + "a.wav,dog,f,\n", "line 3", "its recording is empty"),
    "no family": (HEADER + GOOD + "a.wav,dog,,r\n", "line 3", "its family is empty"),
    "a line break in a label": (HEADER + GOOD + 'a.wav,"d\no\ng",f,r\nb.wav,,f,r\n', "line 3", "control character"),
    "a zero byte": (HEADER + GOOD + "a\0.wav,dog,f,r\n", "line 3", "control character"),
    "a path that leads out": (HEADER + GOOD + "../a.wav,dog,f,r\n", "line 3", "leads out of --audio"),
    "an absolute path": (HEADER + GOOD + "/a.wav,dog,f,r\n", "line 3", "leads out of --audio"),
    "two labels of a clip": (HEADER + GOOD + "good.wav,dog,f,r0\n", "line 3", "is 'dog' here and 'good' at line 2"),
    "labels that look alike": (HEADER + GOOD + "a.wav,GOOD,f,r\n", "line 3", "'GOOD' looks like 'good' of line 2"),
    "two recordings of a clip": (HEADER + GOOD + "good.wav,dog,g,r\n", "line 3", "and of another at line 2"),
    "two endings of a name": (HEADER + GOOD + "good.flac,dog,f,r\n", "line 3", "in its ending alone"),
    "lines that end in carriage returns": ("path,label\ra.wav,dog\rb.wav,cat\r", "line 1", "no CSV"),
    "a header without an end": (f'"path,label\na.wav,{"x" * 200_000}', "line 1", "no CSV"),
    "a cell without an end": (HEADER + GOOD + f"a.wav,{'x' * 200_000},f,r\n", "line 3", "no CSV"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_is_named_by_line(kind, tmp_path):
    content, where, what = BAD_TABLES[kind]
    with pytest.raises(Refused) as refusal:
        read(table(tmp_path, content))
    first = str(refusal.value.problems[0])
    assert first.startswith(str(tmp_path / "clips.csv")) and where in first and what in first
    assert all(problem.remedy for problem in refusal.value.problems)


def test_all_that_is_bad_is_named_at_once(tmp_path):
    """And the line of a row that follows a text of three lines is its own."""
    content = HEADER + 'a.wav,dog,f\nb.wav,"d\no\ng",f,r\nc.wav,,f,r\n' + GOOD + 'd.wav,"cat'
    with pytest.raises(Refused) as refusal:
        read(table(tmp_path, content))
    found = sorted(problem.where.rpartition(":")[2] for problem in refusal.value.problems)
    assert found == ["line 2", "line 3", "line 6", "line 8"]


def test_a_table_that_is_no_file_is_refused(tmp_path):
    for file in (tmp_path, tmp_path / "nowhere.csv"):
        with pytest.raises(Refused, match="cannot be read"):
            read(file)


def test_esc50(tmp_path):
    file = table(
        tmp_path,
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "5-9032-B-0.wav,5,0,door_wood_knock,False,9032,B\n",
        "esc50.csv",
    )
    clips, _ = read(file, preset="esc50")
    assert clips == [
        ("1-100032-A-0.wav", "dog", "sound", "100032", "esc50", "sound", "CC BY-NC 3.0"),
        ("5-9032-B-0.wav", "door wood knock", "sound", "9032", "esc50", "sound", "CC BY-NC 3.0"),
    ]


def test_urbansound8k(tmp_path):
    file = table(
        tmp_path,
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark\n",
    )
    clips, _ = read(file, preset="urbansound8k")
    assert [clip[:4] for clip in clips] == [("fold5/100032-3-0-0.wav", "dog bark", "sound", "100032")]


def test_fsd50k_takes_clips_of_one_label_and_what_is_above_it(tmp_path):
    rows = {
        "1": "Electric_guitar,Guitar,Music",
        "2": "Music,Guitar,Electric_guitar",
        "3": "Acoustic_guitar,Guitar,Music",
        "4": "Guitar,Music",  # which of both guitars is not said
        "5": "Acoustic_guitar,Electric_guitar,Guitar,Music",
        "6": "Bark,Dog",
        "7": "Growl,Dog",
        "8": "Bark,Dog,Music",  # Music is not above it: 6 has none
        "9": "Rain",
        "10": "Wind,Leaves",
        "11": "Leaves,Wind",
    }
    content = "fname,labels,mids,split\n" + "".join(f'{name},"{labels}",/m/1,train\n' for name, labels in rows.items())
    clips, account = read(table(tmp_path, content), preset="fsd50k")
    assert [clip[:4] for clip in clips] == [
        ("1.wav", "Electric guitar", "sound", "1"),
        ("2.wav", "Electric guitar", "sound", "2"),
        ("3.wav", "Acoustic guitar", "sound", "3"),
        ("6.wav", "Bark", "sound", "6"),
        ("7.wav", "Growl", "sound", "7"),
        ("9.wav", "Rain", "sound", "9"),
        ("10.wav", "Wind", "sound", "10"),  # of two labels that never come apart the first
        ("11.wav", "Wind", "sound", "11"),
    ]
    assert account.dropped == {SEVERAL_LABELS: [f"line {n + 1}" for n in (4, 5, 8)]}


def test_speech_commands_and_gtzan_have_folders_for_labels(tmp_path):
    for path in ("yes/0a7c2a8d_nohash_0.wav", "yes/0a7c2a8d_nohash_1.wav", "no/_b_nohash_10.wav",
                 "_background_noise_/pink_noise.wav", "blues/blues.00007.wav", "blues/jazz.00001.wav"):  # fmt: skip
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "README.md").touch()
    clips, account = read(None, tmp_path, preset="speech_commands")
    assert [clip[:4] for clip in clips] == [
        ("no/_b_nohash_10.wav", "no", "word", "_b"),
        ("yes/0a7c2a8d_nohash_0.wav", "yes", "word", "0a7c2a8d"),
        ("yes/0a7c2a8d_nohash_1.wav", "yes", "word", "0a7c2a8d"),
    ]
    others = ["_background_noise_/pink_noise.wav", "blues/blues.00007.wav", "blues/jazz.00001.wav"]
    assert account.dropped == {NO_CLIP: others}
    clips, _ = read(None, tmp_path, preset="gtzan")
    assert [clip[:4] for clip in clips] == [("blues/blues.00007.wav", "blues", "genre", "blues/blues.00007.wav")]


def test_a_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(Refused, match="no records"):
        read(None, tmp_path, preset="gtzan")


def test_nsynth(tmp_path):
    note = {"instrument_family_str": "synth_lead", "instrument_str": "synth_lead_synthetic_001", "pitch": 60,
            "instrument_source_str": "synthetic", "qualities_str": []}  # fmt: skip
    file = table(tmp_path, json.dumps({"synth_lead_synthetic_001-060-100": note}), "examples.json")
    clips, _ = read(file, preset="nsynth")
    assert [clip[:6] for clip in clips] == [
        ("synth_lead_synthetic_001-060-100.wav", "synth lead", "instrument", "synth_lead_synthetic_001", "synthetic",
         "music")
    ]  # fmt: skip
    file = table(tmp_path, json.dumps({"a": note, "b": {**note, "instrument_str": 7}, "c": []}), "examples.json")
    with pytest.raises(Refused) as refusal:
        read(file, preset="nsynth")
    assert [problem.where.rpartition(":")[2] for problem in refusal.value.problems] == ["record 'b'", "record 'c'"]
