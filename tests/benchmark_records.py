"""Records as benchmarks publish them."""


def mmar_record(index, **changed):
    """A record as MMAR's own file has it, but for what nobody asks about (`cue`, `thinking`, `rubric`)."""
    name = f"clip{index}_00-00-00_00-00-06"
    choices = ["Too little", "Just right, no opinion", "Too much", "Can't finish"]
    return {
        "id": name,
        "audio_path": f"./audio/{name}.wav",
        "question": f"How much food is there in {index}?",
        "choices": choices,
        "answer": choices[index % 4],
        "modality": ("speech", "mix-sound-speech", "music")[index % 3],
        "category": "Semantic Layer",
        "sub-category": "Content Analysis",
        "language": "en" if index % 2 else None,
        "source": "youtube",
        "url": "https://www.youtube.com/shorts/x",
        "timestamp": "00:00:00,00:00:06",
        **changed,
    }


def with_letters(record):
    """A record of MMAR as ngqtrung/mmar has it, without its audio."""
    known = ("id", "question", "modality", "category", "language", "source", "url", "timestamp")
    return {
        **{key: record[key] for key in known},
        "choices": [f"{letter}. {choice}" for letter, choice in zip("ABCDEF", record["choices"], strict=False)],
        "answer": "ABCDEF"[record["choices"].index(record["answer"])],
        "subcategory": record["sub-category"],
    }


def mmsu_record(index, **changed):
    """A record of MMSU without its audio; the answers of even ones are texts, of odd ones letters."""
    choices = ["rising", "falling", "level", "dipping"]
    return {
        "id": f"intonation_perception_{index}",
        "question": f"Which intonation has sentence {index}?",
        **{f"choice_{letter}": choice for letter, choice in zip("abcd", choices, strict=True)},
        "answer": "ABCD"[index % 4] if index % 2 else choices[index % 4],
        "task_name": ("intonation_perception", "pause_reasoning")[index % 2],
        "category": "Perception",
        "sub-category": "Linguistics",
        **changed,
    }


def mmau_pro_record(index, **changed):
    """A record as MMAU-Pro's test.parquet has it: one clip, five choices; answers as those of `mmsu_record`."""
    choices = ["flute", "oboe", "clarinet", "bassoon", "horn"]
    return {
        "id": f"00000000-{index:04}",
        "audio_path": [f"data/clip-{index}.wav"],
        "question": f"Which instrument begins in {index}?",
        "answer": "ABCDE"[index % 5] if index % 2 else choices[index % 5],
        "choices": choices,
        "length_type": "short",
        "perceptual_skills": ["Timbre Perception and Instrument Recognition"],
        "reasoning_skills": [],
        "category": ("music", "sound", "speech")[index % 3],
        "transcription": None,
        "task_classification": None,
        "task_identifier": None,
        "kwargs": None,
        "sub-cat": "instrument",
        **changed,
    }
