"""Numbers in texts: what is read, what is not, and that nothing a text holds takes long."""

import random
import time
from fractions import Fraction

import pytest

from r1_aqa_repro.rewards.final_number import Number, final_number, only_number
from tests.hostile import HOSTILE


def shown(number: Number | None) -> str | None:
    return None if number is None else f"{number.value}{'%' * number.percent}"


SAME_NUMBER = [  # alone in a text, it is what the text consists of and what it ends on
    *[(text, "7") for text in ("7", " 7 ", "7.0", "7.", "7.00", "07", "+7", "14/2", "7e0", "７", "٧")],
    *[(text, "7") for text in ("$7", "$7.00", "7€", "£ 7", "¥7", "￥７", r"\$7", "US$7")],
    *[(text, "7") for text in ("$7$", "$$7$$", r"\(7\)", r"\[7\]", "**7**", "*7*", "`7`", "_7_", '"7"', "(7)", "[7]")],
    *[(text, "7") for text in ("7!", "7?", "7;", "7…", "... 7 ...", "7\n", "x = 7", "x=7", "3 + 4 = 7", "3+4 → 7")],
    *[(text, "7") for text in ("7 apples", "7 apples.", "7kg", "7 m", "7 cm²", "7cm^2", "7 cm^2", "7km/h", "$7/day")],
    *[(text, "7") for text in ("7°", "7 °C", r"7\text{ cm}", r"7\,\mathrm{kg}", "7个苹果", "7元。", "7개", "7つ")],
    *[
        (text, "7")
        for text in ("The answer is 7.", "The answer is: **7**", "**Answer:** 7", "Answer:7", "It has 7 legs")
    ],
    *[(text, "7") for text in ("答案是7。", "答案：7", "x ≈ 7", r"x \approx 7", "Step 1: 3+4=7")],
    *[
        (text, "-7")
        for text in ("-7", "−7", "–7", "－７", "-$7", "$-7", "x = -7", "x = - 7", "is - 7", "minus 7", "负7")
    ],
    *[(text, "7000") for text in ("7000", "7,000", "7,000.00", "7 000", "7\u202f000", r"7\,000", "7{,}000", "7e3")],
    *[(text, "7000") for text in ("7 thousand", "7千", "0.7万", "70 hundred", "70百", "$7,000")],
    *[(text, "2000000000") for text in ("2 billion", "20亿", "0.002 trillion", "2e9")],
    *[(text, "1500000") for text in ("1,500,000", "1.5 million", "1.5e6", "$1.5 million", "150万")],
    *[(text, "1/2") for text in ("1/2", "1 / 2", ".5", "0.5", "0.50", "50/100", "½", r"\frac{1}{2}", r"\frac12")],
    *[(text, "1/2") for text in (r"\dfrac{1}{2}", r"$\tfrac{ 1}{2}$", "5e-1", "1/2 cup")],
    *[(text, "-1/2") for text in ("-1/2", "−½", r"-\frac{1}{2}", r"\frac{-1}{2}", "-.5")],
    *[(text, "3/2") for text in ("1 1/2", "1½", r"1\frac{1}{2}", r"1 \frac12", "3/2", "1.5")],
    *[(text, "50%") for text in ("50%", "50 %", "50.0%", r"50\%", "50 percent", "50 per cent", "50％", "百分之50")],
    *[(text, "1/2%") for text in ("0.5%", "1/2 %", "½ percent")],
]
NO_NUMBER = [
    *("", " ", "seven", "七", "Infinity", "nan", "-", "$", "."),
    # expressions, even such as would be one after some arithmetic
    *("3 + 4", "3+4", "10 - 3", "10-3", "7 * 1", "7*1", "2 × 3", r"2 \times 3", "6 ÷ 2", "3 ± 1", "(3+4) * 2", "2(3)"),
    *("9^9^9^9", " 9^9^9^9 ", "9 ^ 9", "9**9", "9 ** 9", "9²", "10^{3}", r"1.5 \times 10^3", "1.5×10³", "1/2/3", "1/0"),
    *("2\\pi", "2 \\pi", "2π", "2 π", r"2\sqrt{3}", r"2 \sqrt{3}", "√2", "3x", "3 + x", "2pi", r"\frac{\pi}{2}"),
    *("x > 7", "x ≥ 7", r"x \ge 7", "< 7"),
    # something else with digits
    *("7th", "1st", "the 22nd", "12:30", "3:1", "3 : 1", "3-7", "3–7", "2024-01-05", "v7", "1.2.3", "192.168.0.1"),
    *("1,2,3", "7,00", "1.000.000,5", "1_000", "0x10", "#7", "x1", "H2O", "R2D2", "cm^2", "log2"),
    *("Speaker 1", "speaker 1", "Option 2", "Step 3", "Question (4)", "7e9999", "1" * 101),
]
# the last word with a digit is the number, but not all that the text holds
ENDS_ON = [
    ("7 or 8", "8"),
    ("3 apples and 4 pears", "4"),
    ("1, 2, 3", "3"),
    ("dog 1", "1"),
    ("He paid 7 dollars", "7"),
    ("I think 7", "7"),
    ("- 7", "7"),  # an item of a list
    ("First 3.\nThen 3 + 4 = 7\n", "7"),
    ("Of 12 apples she ate 5, so there are 7 apples left (see step 2).", "7"),
    ("Each H2O has 3 atoms", "3"),
    ("#### Answer to part 2\n7", "7"),  # a heading
    ("##### 5\n7", "7"),
    ("<think>3 and 4</think> 7", "7"),
    ("she has 48/2 = <<48/2=24>>24 clips, 48+24 = <<48+24=72>>72 in all", "72"),
]


@pytest.mark.parametrize(("text", "value"), SAME_NUMBER)
def test_ways_to_write_a_number(text, value):
    assert shown(final_number(text)) == shown(only_number(text)) == value


@pytest.mark.parametrize("text", NO_NUMBER)
def test_what_is_no_number(text):
    assert final_number(text) is None
    assert only_number(text) is None


@pytest.mark.parametrize(("text", "value"), ENDS_ON)
def test_a_text_that_ends_on_a_number(text, value):
    assert shown(final_number(text)) == value


@pytest.mark.parametrize("text", [text for text, _ in ENDS_ON[:7]])
def test_a_text_that_does_not_consist_of_its_number(text):
    assert only_number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"So 3 + 4 is \boxed{7}, not 8.", "7"),
        (r"\boxed{6} or rather \boxed{7}", "7"),
        (r"\boxed{\frac{1}{2}} of the 10", "1/2"),
        (r"$\boxed{x = -7}$", "-7"),
        (r"\boxed{7 \text{ apples}}", "7"),
        (r"\boxed{7", "7"),  # cut off
        (r"\boxed{}", None),
        (r"7 \boxed{seven}", None),
        (r"\boxed{7 or 8}", None),
        (r"\boxed{dog 1}", None),
        ("3 and 4\n#### 7", "7"),
        ("3 and 4\n#### $7,000\n", "7000"),
        ("#### 6\n#### 7", "7"),
        ("#### 6 #### 7", "7"),
        ("#### 7 or 8", None),
        (r"#### -\frac{1}{2}", "-1/2"),
        ("#### 5\nso \\boxed{7}", "7"),
    ],
)
def test_marks(text, value):
    assert shown(final_number(text)) == shown(only_number(text)) == value


def written(value: Fraction, rng: random.Random) -> list[str]:
    """Ways to write a value, each built from numerator and denominator alone."""
    above, below = abs(value.numerator), value.denominator
    factor = rng.randint(2, 9)
    whole, rest = divmod(above, below)
    bare = [f"{above}/{below}", f"{factor * above} / {factor * below}", rf"\frac{{{above}}}{{{below}}}"]
    if below == 1:
        bare += [f"{above}", f"{above:,}", f"{above}.{'0' * factor}", f"{above}.", f"${above:,}", f"{above}e0"]
    elif whole:
        bare += [f"{whole} {rest}/{below}", rf"{whole}\frac{{{rest}}}{{{below}}}"]
    if 10**6 % below == 0:
        millionths = above * (10**6 // below)
        bare.append(f"{millionths // 10**6:,}.{millionths % 10**6:06}")
    return [sign + text for text in bare for sign in (("-", "−") if value < 0 else ("", "+"))]


def drawn(rng: random.Random) -> Fraction:
    below = rng.choice([1, 1, 2, 3, 4, 7, 8, 10, 25, 100, 1000])
    return Fraction(rng.randint(-(10 ** rng.randint(1, 7)), 10 ** rng.randint(1, 7)), below)


AROUND = ["{}", "The answer is {}.", "x = {}", "**{}**", r"\boxed{{{}}}", "#### {}", "It is {} kg", "$y={}$"]


def test_all_ways_to_write_a_value_are_equal():
    rng = random.Random(0)
    for _ in range(400):
        value = drawn(rng)
        for text in written(value, rng):
            around = rng.choice(AROUND).format(text)
            assert final_number(around) == only_number(around) == Number(value, percent=False), around
            assert only_number(f"{text.rstrip('.')}%") == Number(value, percent=True), text


def test_different_values_are_never_equal():
    rng = random.Random(1)
    for _ in range(400):
        value = drawn(rng)
        other = value + rng.choice([1, -1, Fraction(1, 10**9), Fraction(-1, 7), value, 9 * value, -value - value])
        if other != value:
            mine, theirs = ({only_number(text) for text in written(each, rng)} for each in (value, other))
            assert len(mine) == len(theirs) == 1 and mine != theirs


def test_digits_within_something_else_are_no_number():
    rng = random.Random(2)
    for _ in range(200):
        number = rng.randint(1, 999)
        for text in (
            *(f"{number}1", f"1{number}", f"-{number}", f"{number}.5", f"0.{number}", f"{number}%", f"{number}/1000"),
            *(f"{number}th", f"v{number}", f"{number}^2", f"2^{number}", f"Speaker {number}", f"{number}:{number}"),
            *(f"{number}-{number}", f"{number}+{number}", f"{number} million", f"{number},{number},", f"{number}e2"),
        ):
            assert final_number(text) != Number(Fraction(number), percent=False), text


REPEATED = [
    *(
        "1",
        " 9^9^9^9 ",
        "9^",
        "1 ",
        "1,",
        "1/",
        "1/1 ",
        "1.",
        "1e1",
        "1&1/1 ",
        "-",
        "- ",
        "=",
        "=>",
        ">",
        "$",
        "½",
        "7万",
    ),
    *(
        "\\frac{",
        "\\frac{1}",
        "\\boxed{",
        "\\boxed{}",
        "\\begin{",
        "\\text{",
        "\\",
        "{",
        "}",
        "(",
        ")",
        "<<",
        "<<1",
        "<",
    ),
    *(
        "#",
        "####",
        "#### ",
        "#### 1",
        " ",
        "\n",
        "\t",
        "百分之",
        "七",
        "step 1",
        "minus ",
        "is - ",
        "1 million",
        "1 per",
        "a",
    ),
]


@pytest.mark.timeout(120)
def test_no_text_takes_long():
    """40,000 characters take 0.02 to 0.2 s; a pattern of quadratic time takes 4 s and more, others would never end."""
    for repeated in REPEATED:
        text = repeated * (40_000 // len(repeated)) + "x"
        started = time.process_time()
        final_number(text)
        assert time.process_time() - started < 2, repeated


@pytest.mark.timeout(20)
def test_a_million_digits_are_no_number():
    assert final_number("7 " + "7" * 1_000_000) is None
    for text in ("{}", "0.{}", "1e{}", "1/{}", "1 1/{}", "{},777"):
        assert final_number(text.format("7" * 10_000)) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_texts(text):
    assert shown(final_number(f"{text}\n7")) == "7"
    assert only_number(text) is None or isinstance(only_number(text), Number)
