"""Mathematics in texts: what is read, what is equal, and that no text takes long."""

import threading
import time

import pytest

from r1_aqa_repro.rewards import mathematics
from r1_aqa_repro.rewards.mathematics import are_equal, expressions
from tests.hostile_texts import HOSTILE

# by gold answer
EQUAL = {
    "7": [
        *("7", " 7.0 ", "07", "$7", "$7$", r"\(7\)", "**7**", "7!", "14/2", "3 + 4", "3 + 4 = 7."),
        *("The answer is 7.", "x = 7", "$x = 7$", "Of 12 she ate 5; 7 are left.", "7 (see above)"),
        *("7 apples", "7kg", "7 cm²", r"$\boxed{7\text{ cm}}$", "7%", "7 percent", "7th"),
        *("dog 7", "6 or 7", r"So \boxed{7}, not 8."),
    ],
    "-7": ["-7", "x = -7", r"$\boxed{-7}$", "4 - 11"],
    "7000": ["7,000", "7 000", "$7,000.00", "7000"],
    "1/2": ["0.5", ".5", "1/2", "50/100", r"\frac{1}{2}", r"$\frac12$", "50%", "1/2 cup"],
    "50": ["50%", "50.0", "50 percent"],
    "1/3": ["0.333333", r"$\frac{2}{6}$"],
    r"$2\pi$": [r"$2\pi$", r"$\pi + \pi$"],
    # how GSM8K and MATH write their golds
    "48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72": ["She sold 72 clips."],
    r"We get $\boxed{\frac{3}{4}}$.": ["0.75"],
}
DIFFERENT = {
    "7": [
        *("-7", "17", "7.5", "7.0001", "7 or 8", "70%", "3 + 5", "7,000", "9^9"),
        *("", "-", "seven", "7 = 8", r"\boxed{8} and 7", r"\boxed{6} or \boxed{7}"),
        # what the reader does not know, here and below: typographic signs, no space before the number
        *("+7", "答案是7", "<b>7</b>", "七"),
    ],
    "1/2": ["0.49", "1/3", "50", "0.5001", "½"],
    "1/3": ["0.333", "33%"],
    "-7": ["−7"],
    "3/2": ["1 1/2"],
    "1500000": ["1.5 million"],
}


def each(by_gold):
    return [(gold, text) for gold, texts in by_gold.items() for text in texts]


@pytest.fixture
def a_second(monkeypatch):
    """What a text may take here, in place of 5 s; the parser has read its tables before."""
    are_equal("7", "$7$")
    monkeypatch.setattr(mathematics, "_SECONDS", 1)


@pytest.mark.parametrize(("gold", "text"), each(EQUAL))
def test_texts_of_one_value_are_equal(gold, text):
    assert are_equal(gold, text)


@pytest.mark.parametrize(("gold", "text"), each(DIFFERENT))
def test_texts_of_other_values_or_without_one_are_different(gold, text):
    assert not are_equal(gold, text)


@pytest.mark.parametrize("text", ["", "seven", "I do not know.", "−7"])
def test_a_text_without_mathematics_does_not_equal_itself(text):
    assert expressions(text) == ()
    assert not are_equal(text, text)


@pytest.mark.parametrize("repeated", ["1 ", " 9^9^9^9 ", "9**", "$$ ", "\\(", "$x^{", "\\boxed{", "(", "#", "a"])
def test_a_long_text_is_given_up_in_time(repeated, a_second):
    """math-verify's patterns take quadratic time."""
    started = time.monotonic()
    assert not are_equal("7", repeated * (40_000 // len(repeated)))
    assert time.monotonic() - started < 5  # a second to read and one to compare, on a busy machine


@pytest.mark.parametrize(
    "text",
    [
        *("9^9^9^9", "$9^{9^{9^9}}$", "$100000000!$", "1e999999999", "1/0", r"$\frac{1}{0}$"),
        *("9" * 10_000, "(" * 1000 + "7", *HOSTILE),
    ],
)
def test_a_hostile_text_is_wrong_and_given_up_in_time(text, a_second):
    started = time.monotonic()
    assert not are_equal("3", text)
    assert time.monotonic() - started < 5


def test_another_thread_is_refused_because_nothing_could_stop_it_there():
    raised = []

    def read():
        try:
            expressions("7 in another thread")
        except ValueError as error:
            raised.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert len(raised) == 1 and "threaded environment" in raised[0]
