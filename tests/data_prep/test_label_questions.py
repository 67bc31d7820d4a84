"""Questions about labelled clips: who is held out, that nothing can be guessed, and that a bias would show."""

import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from data_prep.folder import Account
from data_prep.label_questions import (
    ELSEWHERE,
    FEW_LABELS,
    FEW_RECORDINGS,
    UNTRAINED,
    Drawing,
    Source,
    blind_baselines,
    divide,
    draw,
    without_rare,
)
from data_prep.label_tables import LabelledClip

DRAWING = Drawing(
    seed=0,
    train_parts=["train"],
    choices=4,
    templates=defaultdict(lambda: ["What is it?", "Which is it?"]),
    per_family=None,
    held_out_per_family=None,
    questions_a_clip=2,
    dataset="test",
)


def clip(path, label, family="f", recording=None, source="s"):
    return LabelledClip(f"line {path}", path, label, family, recording or path, source, "sound", "CC0")


def clips_of(numbers, family="f", source="s"):
    """So many clips of labels a, b, ..., each a recording of its own."""
    return [
        clip(f"{family}-{source}-{label}{n}", label, family, source=source)
        for label, number in zip("abcdefghijklmnop", numbers, strict=False)
        for n in range(number)
    ]


def parts_of(clips, share=0.2, sources=(), minimum=5, account=None, train=("train",), held_out=("held_out",)):
    return divide(clips, share, train, held_out, sources, minimum, account or Account())


def questions(part, clips, **changed):
    return draw(part, clips, replace(DRAWING, **changed))


@pytest.mark.parametrize(
    ("number", "share", "held_out"), [(10, 0.2, 2), (5, 0.2, 1), (6, 0.01, 1), (7, 0.5, 4), (8, 0, 0)]
)
def test_a_share_of_each_labels_recordings_is_held_out(number, share, held_out):
    parts = parts_of(clips_of([number] * 3), share)
    assert Counter(one.label for one in parts["held_out"]) == dict.fromkeys("abc" if held_out else "", held_out)
    assert Counter(one.label for one in parts["train"]) == dict.fromkeys("abc", number - held_out)


def test_what_is_held_out_can_be_divided_and_each_part_has_as_much_of_a_label():
    clips = clips_of([10, 7, 4])
    whole, halves = parts_of(clips, 0.4), parts_of(clips, 0.4, held_out=["report", "tune"])
    assert {one.path for part in ("report", "tune") for one in halves[part]} == {one.path for one in whole["held_out"]}
    assert halves["train"] == whole["train"]
    # of the third label there are too few to learn it
    assert Counter(one.label for one in halves["report"]) == {"a": 2, "b": 2}
    assert Counter(one.label for one in halves["tune"]) == {"a": 2, "b": 1}
    one_each = parts_of(clips_of([5] * 3), 0.2, held_out=["report", "tune"])
    assert [len(one_each[part]) for part in ("train", "report", "tune")] == [9, 3, 3]


def test_what_is_trained_on_can_be_divided_too_and_the_rest_stays_as_it_was():
    clips = clips_of([10, 8, 7, 6, 5])
    whole, halves = parts_of(clips, 0.4), parts_of(clips, 0.4, train=["first", "second"])
    assert halves["held_out"] == whole["held_out"]
    assert {one.path for part in ("first", "second") for one in halves[part]} == {one.path for one in whole["train"]}
    assert Counter(one.label for one in halves["first"]) == {"a": 3, "b": 3, "c": 2, "d": 2, "e": 2}
    assert Counter(one.label for one in halves["second"]) == {"a": 3, "b": 2, "c": 2, "d": 2, "e": 1}

    drawing = {"train_parts": ["first", "second"], "per_family": 40, "held_out_per_family": 3}
    asked = {part: questions(part, of_part, **drawing) for part, of_part in halves.items()}
    assert [len(asked[part]) for part in ("first", "second", "held_out")] == [40, 40, 3]
    of_part = [{question.source_video for question in asked[part]} for part in ("first", "second")]
    assert not of_part[0] & of_part[1]
    rare = without_rare(halves | {"second": []}, ["first", "second"], ["held_out"], 5, 3, Account())
    assert {one.label for one in rare["held_out"]} == set("abc")  # of d and e 2 are left and 2 held out, too few


def test_who_is_held_out_depends_on_the_recordings_alone():
    clips = clips_of([10] * 6)
    held_out = {one.path for one in parts_of(clips)["held_out"]}
    random.Random(1).shuffle(clips)
    assert {one.path for one in parts_of(clips)["held_out"]} == held_out
    elsewhere = [*clips, *clips_of([10] * 6, "g")]
    assert {one.path for one in parts_of(elsewhere)["held_out"] if one.family == "f"} == held_out


def test_a_recording_is_in_one_part_in_all_families():
    """Rows of a recording in a second family, and ten rows of every recording in a third one."""
    clips = clips_of([10] * 6)
    shared = [replace(one, family="g", label=f"g{n % 3}") for n, one in enumerate(clips)]
    slices = [replace(one, family="h", path=f"{one.path}-{n}") for one in clips for n in range(10)]
    parts = parts_of([*clips, *shared, *slices])
    found = {part: {one.recording for one in of_part} for part, of_part in parts.items()}
    assert not found["train"] & found["held_out"]
    assert len(found["held_out"]) == 12 and sum(map(len, parts.values())) == 60 + 60 + 600


def test_a_held_out_source_takes_its_recordings_out_of_all_families():
    clips = [*clips_of([6] * 4), *clips_of([6] * 4, source="lab"), *clips_of([6] * 4, "g", "lab")]
    twin = replace(clips[30], family="g", where="line twin")  # of a recording of the source, in another family
    account = Account()
    parts = parts_of([*clips, twin], sources=[Source("lab", "f")], account=account)
    assert {(one.source, one.family) for one in parts["lab"]} == {("lab", "f")} and len(parts["lab"]) == 24
    assert {(one.source, one.family) for one in [*parts["train"], *parts["held_out"]]} == {("s", "f"), ("lab", "g")}
    assert account.dropped == {ELSEWHERE: ["line twin"]}
    everything = parts_of([*clips, twin], sources=[Source("lab")])
    assert len(everything["lab"]) == 49 and len(everything["train"]) + len(everything["held_out"]) == 24


def test_what_cannot_be_learned_is_left_out_by_reason():
    clips = [
        *clips_of([5, 5, 5, 5, 4]),
        *clips_of([5] * 3, "small"),
        *clips_of([1] * 6, source="lab"),
        *clips_of([1] * 3, source="shed"),
    ]
    account = Account()
    sources = [Source("lab"), Source("shed")]
    parts = without_rare(parts_of(clips, sources=sources, account=account), ["train"], ["held_out"], 5, 4, account)
    assert {one.label for one in parts["train"]} == {one.label for one in parts["held_out"]} == set("abcd")
    assert {one.label for one in parts["lab"]} == set("abcd") and not parts["shed"]
    assert {reason: len(lost) for reason, lost in account.dropped.items()} == {
        FEW_RECORDINGS: 4,
        FEW_LABELS: 15 + 3,
        UNTRAINED: 2,
    }
    assert "e has 4 of the 5 recordings" in account.details[FEW_RECORDINGS][0]
    assert "f has 3 labels in shed, and a question 4 choices" in account.details[FEW_LABELS][-1]


def test_training_asks_about_every_clip_of_a_label_before_any_again():
    asked = questions("train", clips_of([3, 9, 5, 7, 11]), per_family=200)
    assert len(asked) == 200
    by_label = defaultdict(Counter)
    for question in asked:
        by_label[question.answer][question.audio_path] += 1
    for label, number in zip("abcde", (3, 9, 5, 7, 11), strict=True):
        assert len(by_label[label]) == number
        assert max(by_label[label].values()) - min(by_label[label].values()) <= 1


@pytest.mark.parametrize("times", [1, 3])
def test_a_held_out_clip_is_asked_about_so_often_at_most(times):
    asked = questions("held_out", clips_of([2, 3, 4, 5, 6]), questions_a_clip=times)
    assert max(Counter(question.audio_path for question in asked).values()) == times
    # it ends when two of five labels are used up, so that three are left
    found = Counter(question.answer for question in asked)
    assert sum(found[label] == times * number for label, number in zip("abcde", range(2, 7), strict=True)) == 2


def test_a_family_is_asked_about_as_often_as_is_said():
    clips = [*clips_of([9] * 5), *clips_of([4] * 9, "g")]
    for part, option in (("train", "per_family"), ("held_out", "held_out_per_family")):
        asked = questions(part, clips, **{option: 11})
        assert Counter(question.category for question in asked) == {"f": 11, "g": 11}
    assert Counter(question.category for question in questions("train", clips)) == {"f": 45, "g": 36}


def test_a_question_is_one_about_its_clip():
    clips = [replace(one, licence="") for one in clips_of([6] * 4)] + clips_of([6] * 4, "g", "lab")
    drawn = questions("train", clips, choices=3)
    by_path = {one.path: one for one in clips}
    for question in drawn:
        of = by_path[str(question.audio_path)]
        assert (question.answer, question.source_video) == (of.label, of.recording)
        assert (question.category, question.sub_category) == (of.family, f"{of.family}, {of.source}")
        assert (question.task, question.source, question.licence) == ("sound", of.source, of.licence or None)
        assert len(set(question.choices)) == 3 and question.answer in question.choices
        assert (question.split, question.dataset) == ("train", "test")
    assert len({question.id for question in drawn}) == len(drawn)
    assert {question.question for question in drawn} == {"What is it?", "Which is it?"}


def test_questions_depend_on_seed_part_and_their_own_family_alone():
    clips, others = clips_of([6] * 5), clips_of([6] * 5, "g")
    asked = questions("held_out", clips)
    assert questions("held_out", clips) == asked
    both = questions("held_out", [*others, *clips])
    assert [q for q in sorted(both, key=lambda q: q.id) if q.category == "f"] == sorted(asked, key=lambda q: q.id)
    for other in (questions("held_out", clips, seed=1), questions("train", clips)):
        assert [q.choices for q in other[:5]] != [q.choices for q in asked[:5]]


def test_no_choice_is_right_more_often_than_another_whatever_the_number_of_clips():
    """Labels with 500 to 8,000 clips: of each 3 of 4 labels every one is right in a third, and at every position,
    within 4.5 standard deviations, which 15 counts exceed once in 10,000 seeds."""
    clips = clips_of([500, 1000, 4000, 8000])
    asked = questions("held_out", clips, choices=3, questions_a_clip=2, held_out_per_family=6000)
    by_choices, by_position = defaultdict(Counter), Counter()
    for question in asked:
        by_choices[frozenset(question.choices)][question.answer] += 1
        by_position[question.choices.index(question.answer)] += 1
    assert len(by_choices) == 4
    for found in (*by_choices.values(), by_position):
        n = sum(found.values())
        assert all(abs(count - n / 3) < 4.5 * (n * 2 / 9) ** 0.5 for count in found.values()) and len(found) == 3


def test_the_baseline_of_exchangeable_choices_is_chance():
    """Many labels and few questions: a guess made from the question's own answer would get a third right."""
    found = []
    parts = parts_of(clips_of([10] * 16))
    for seed in range(20):
        asked = {part: questions(part, parts[part], seed=seed, per_family=200) for part in ("train", "held_out")}
        found.append(blind_baselines(asked, ["train"]))
    for key in (("train", "f"), ("held_out", "f")):
        right, n = (sum(getattr(one[key], name) for one in found) for name in ("correct", "n"))
        assert abs(right / n - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    assert not any(one.is_biased for baselines in found for one in baselines.values())


def test_a_bias_shows_in_training_and_held_out():
    """The label first, then others: frequent labels are right where they are offered."""
    rng = random.Random(0)
    weights = [16, 8, 4, 2, 1, 1]
    asked = {}
    for part, n in (("train", 400), ("held_out", 150)):
        answers = rng.choices("abcdef", weights, k=n)
        asked[part] = [
            replace(question, answer=answer, choices=(answer, *rng.sample(sorted(set("abcdef") - {answer}), 3)))
            for question, answer in zip(questions("train", clips_of([9] * 6), per_family=n), answers, strict=True)
        ]
    found = blind_baselines(asked, ["train"])
    assert all(one.is_biased and one.correct / one.n > 0.4 for one in found.values()) and len(found) == 2


def test_every_part_that_is_trained_on_teaches_the_guess():
    one = questions("train", clips_of([9] * 4), per_family=1)[0]
    asked = {
        "first": [replace(one, choices=("a", "b"), answer="a")],
        "second": [replace(one, choices=("b", "a"), answer="b")],
        "held_out": [replace(one, choices=("b", "a"), answer="a")],
    }
    correct = {part: found.correct for (part, _), found in blind_baselines(asked, ["first", "second"]).items()}
    # a tie, of which the first choice is taken; "a", which has been right; a tie again
    assert correct == {"first": 1, "second": 0, "held_out": 0}


def test_the_interval_is_one_for_all_families_and_parts():
    asked = {"train": questions("train", clips_of([20] * 10), per_family=100)}
    one = blind_baselines(asked, ["train"])["train", "f"]
    many = {"train": [replace(q, category=f"f{n}") for n in range(16) for q in asked["train"]]}
    of_many = blind_baselines(many, ["train"])["train", "f0"]
    assert of_many.correct == one.correct
    assert of_many.interval[0] < one.interval[0] < one.interval[1] < of_many.interval[1]
