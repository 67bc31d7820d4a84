"""Role play by a rubric: what each demand counts, by hand, and every mistake that a rubric file can hold."""

import time

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.rewards.persona import persona_parts, persona_reward, phrases_in, read_rubric
from tests.conftest import ROOT
from tests.hostile_texts import HOSTILE

EXAMPLE = ROOT / "configs" / "personas" / "lighthouse_keeper.yaml"


@pytest.fixture
def rubric_file(tmp_path):
    def write(text):
        (tmp_path / "rubric.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "rubric.yaml")

    return write


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("I am here", "I", True),
        ("I'm here", "I", True),
        ("It is", "I", False),
        ("Hawaii", "I", False),
        ("hi-i", "I", True),
        ("a lamp.", "lamp", True),
        ("lamps", "lamp", False),
        ("lamp_post", "lamp", False),
        ("As  an\nAI", "as an AI", True),
        ("as an aide", "as an AI", False),
        ("ＡＳ ＡＮ ＡＩ", "as an AI", True),
        ("I'm here", "I’m", True),
        ("I´m here", "I'm", True),
        ("GROSSE STRASSE", "Straße", True),
        ("cafe\u0301", "café", True),
        ("cafés", "café", False),
        # scripts in which words have no end
        ("作为一个人工智能，我", "人工智能", True),
        ("作为AI助手", "AI", True),
        ("作为AIX助手", "AI", False),
        ("灯塔看守人", "灯塔", True),
        ("바다가", "바다", True),
        ("🙂🙂", "🙂", True),
        ("(sigh)s", "(sigh)", True),
        ("a+b", "a.b", False),  # no pattern
    ],
)
def test_a_phrase_is_found_but_not_within_a_longer_word(text, phrase, found):
    assert phrases_in(text, [phrase]) == [phrase] * found


@pytest.mark.parametrize(
    ("demand", "text", "expected"),
    [
        ("required: [lamp, fog, tide]", "The lamp! The FOG.", 2 / 3),
        ("required: [lamp, fog, tide]", "Lamplight, foggy tides", 0),
        ("required: [lamp]", "lamp lamp lamp", 1),
        ("required: [灯塔, 大雾]", "我守着灯塔。", 0.5),
        ("forbidden: [as an AI, language model]", "I keep the lamp.", 1),
        ("forbidden: [as an AI, language model]", "As an AI, I keep the lamp.", 0),
        ("first_person: true", "The lamp is lit. I lit it.", 1),
        ("first_person: true", "It is lit.", 0),
        ("first_person: true", "A lamp, i.e. a light.", 0),
        ("first_person: true", "我点了灯。", 1),
        ("first_person: true", "我们点了灯。", 0),
        ("first_person: true", "12 + 3.", 0),
        ("first_person: 0.5", "I lit it. It burns.", 1),
        ("first_person: 0.51", "I lit it. It burns.", 0),
        ("first_person: 0.5", "I lit it, and I, I alone! It burns. It burns?", 0),
        ("first_person: 1.0", "I lit 3.5 lamps... My hands shook!", 1),
        ("first_person: 0.3", "My. A. B. C. D. E. F. I. G. Mine", 1),  # 3 of 10
        ("first_person: 0.31", "My. A. B. C. D. E. F. I. G. Mine", 0),
        ("first_person: 0.5", "我来了。你好！", 1),
        ("first_person: 0.6", "我来了。你好！", 0),
        ("language: en", "A lamp in the fog, 12 times.", 1),
        ("language: en", "Élan vital", 1),
        ("language: en", "ab 灯塔", 0.5),
        ("language: zh", "我守着灯塔。", 1),
        ("language: zh", "灯塔 abcd ef", 0.25),
        ("language: zh", "ランプ", 0),
        ("language: zh", "123!", 0),
        ("length: {min_words: 3}", "two words", 0),
        ("length: {min_words: 3}", "now three words", 1),
        ("length: {max_words: 3}", "now there are four", 0),
        ("length: {min_characters: 3, max_characters: 4}", "  灯塔人 ", 1),
        ("length: {min_characters: 3, max_characters: 4}", "灯塔", 0),
        ("length: {min_characters: 3, max_characters: 4}", "灯塔看守人", 0),
        ("length: {max_words: 1, max_characters: 4}", "a b", 0),
    ],
)
def test_each_demand_is_met_to_a_degree(rubric_file, demand, text, expected):
    rubric = read_rubric(rubric_file(f"parts: {{a: {{weight: 1, {demand}}}}}"))
    assert persona_parts(text, rubric) == {"a": expected}
    assert persona_parts("", rubric) == persona_parts(" \n\t", rubric) == {"a": 0}


KEEPER = """
I trim the lamp each night and I listen to the tide on the rock. The fog came in at four, thick as wool.
You ask if I am lonely? I have my gulls, my kettle and the ships that never see me.
"""


def test_the_example_by_hand():
    rubric = read_rubric(str(EXAMPLE))
    assert sum(weight for weight, _ in rubric.values()) == 6
    assert persona_parts(KEEPER, rubric) == {
        "at_the_light": 1,
        "stays_in_role": 3,
        "speaks_as_i": 0.5,  # 3 of 4 sentences
        "in_english": 0.5,
        "a_few_sentences": 1,  # 40 words
    }
    assert persona_parts("As an AI language model, I can describe the lamp.", rubric) == {
        "at_the_light": 0.25,
        "stays_in_role": 0,
        "speaks_as_i": 0.5,
        "in_english": 0.5,
        "a_few_sentences": 0,  # 9 words
    }


def test_the_reward_is_the_sum_of_the_parts_which_are_logged_one_by_one():
    reward = persona_reward(str(EXAMPLE))
    texts = [KEEPER, "As an AI language model, I can describe the lamp.", ""]
    logged = {}
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    assert reward(completions=conversations, prompts=["?"] * 3, log_metric=logged.__setitem__) == [6, 1.25, 0]
    assert reward(completions=texts) == [6, 1.25, 0]
    thirds = {"at_the_light": 1.25, "stays_in_role": 3, "speaks_as_i": 1, "in_english": 1, "a_few_sentences": 1}
    assert logged == pytest.approx({f"persona/{name}": value / 3 for name, value in thirds.items()})


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("", "no mapping"),
        ("- a", "no mapping"),
        ("parts: [", "cannot be read"),
        ("{}", "expected `parts:` with at least one part in it, found nothing"),
        ("parts:", "expected `parts:`"),
        ("rubric: {}", "found the keys rubric"),
        ("parts: {a: {weight: 1, language: en}}\nname: x", "found the keys parts, name"),
        ("parts: {a: 1}", "parts.a: 1 is no part"),
        ("parts: {1: {weight: 1, language: en}}", "parts.1: the name is no text"),
        ("parts: {a: {language: en}}", "parts.a.weight: absent"),
        ("parts: {a: {weight: 0, language: en}}", "parts.a.weight: 0"),
        ("parts: {a: {weight: true, language: en}}", "parts.a.weight: True"),
        ("parts: {a: {weight: .inf, language: en}}", "parts.a.weight: inf"),
        ("parts: {a: {weight: .nan, language: en}}", "parts.a.weight: nan"),
        ("parts: {a: {weight: 1" + "0" * 400 + ", language: en}}", "parts.a.weight: 10"),
        ("parts: {a: {weight: 1}}", "parts.a: 0 demands (none)"),
        ("parts: {a: {weight: 1, language: en, first_person: true}}", "parts.a: 2 demands (language, first_person)"),
        ("parts: {a: {weight: 1, langauge: en}}", "parts.a.langauge: there is no such key"),
        ("parts: {a: {weight: 1, language: fr}}", "parts.a.language: 'fr'"),
        ("parts: {a: {weight: 1, first_person: false}}", "parts.a.first_person: False"),
        ("parts: {a: {weight: 1, first_person: 1.5}}", "parts.a.first_person: 1.5"),
        ("parts: {a: {weight: 1, required: lamp}}", "parts.a.required: 'lamp'"),
        ("parts: {a: {weight: 1, required: []}}", "parts.a.required: []"),
        ("parts: {a: {weight: 1, forbidden: [' ']}}", "parts.a.forbidden: [' ']"),
        ("parts: {a: {weight: 1, forbidden: [no]}}", "parts.a.forbidden: [False]"),  # YAML's `no`
        ("parts: {a: {weight: 1, length: 5}}", "parts.a.length: 5"),
        ("parts: {a: {weight: 1, length: {}}}", "parts.a.length: {}"),
        ("parts: {a: {weight: 1, length: {min_word: 5}}}", "parts.a.length.min_word: there is no such key"),
        ("parts: {a: {weight: 1, length: {min_words: -1}}}", "parts.a.length.min_words: -1"),
        ("parts: {a: {weight: 1, length: {max_words: true}}}", "parts.a.length.max_words: True"),
        ("parts: {a: {weight: 1, length: {min_words: 5, max_words: 4}}}", "parts.a.length: min_words 5 is above max"),
    ],
)
def test_a_broken_rubric_is_refused(rubric_file, content, wrong):
    path = rubric_file(content)
    with pytest.raises(Refused) as refusal:
        persona_reward(path)
    (problem,) = refusal.value.problems
    assert problem.where.startswith(path) and wrong in str(problem) and problem.remedy


def test_everything_wrong_in_a_rubric_is_named_at_once(rubric_file):
    path = rubric_file("parts: {a: {weight: 0, language: en}, b: {weight: 1, language: en}, c: {weight: 1, tint: red}}")
    with pytest.raises(Refused) as refusal:
        read_rubric(path)
    assert [problem.where for problem in refusal.value.problems] == [
        f"{path}: parts.{at}" for at in ("a.weight", "c.tint")
    ]


@pytest.mark.timeout(120)
def test_no_text_takes_long():
    """40,000 characters take 0.3 s at most; in quadratic time they would take 4 s and more."""
    rubric = read_rubric(str(EXAMPLE))
    for repeated in ("a", ".", ". ", "!…", "I ", "i.", "我", "as an ", " ", "\n", "’", "½", "ﷺ"):
        started = time.process_time()
        persona_parts(repeated * (40_000 // len(repeated)) + "x", rubric)
        assert time.process_time() - started < 2, repeated


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_texts(text, rubric_file):
    assert 0 <= sum(persona_parts(text, read_rubric(str(EXAMPLE))).values()) <= 6
    assert phrases_in(f"well {text} well", [text]) == [text]
