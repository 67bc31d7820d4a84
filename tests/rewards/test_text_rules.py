"""Rule rewards of text completions: right ones, wrong ones, and those that only look right."""

import time
import warnings
from pathlib import Path

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.embedded.text_tasks import REFUSAL
from r1_aqa_repro.rewards.text_rules import (
    REFUSALS,
    is_gold_expression,
    is_refusal,
    length_penalty,
    math_reward,
    python_syntax_reward,
    safety_reward,
)
from tests.files import write_lines
from tests.hostile_texts import HOSTILE
from tests.text_world import Build


def conversation(text):
    return [{"role": "assistant", "content": text}]


class TestMath:
    """What is equal is in `test_mathematics`; here: which text of a completion counts."""

    @pytest.mark.parametrize(
        ("completion", "answer", "reward"),
        [
            ("The answer is 7.", "7.0", 1),
            ("The answer is 8.", "7", 0),
            ("seven", "seven", 0),
            # what is left to do is no answer, unless the gold is written so
            ("3 + 4", "7", 0),
            ("3 + 4 = 7.", "7", 1),
            ("$3+4=7$", "7", 1),
            (r"\boxed{2^3}", "8", 0),
            (r"$3 \times 4$", "12", 0),
            (r"$6 \div 2$", "3", 0),
            (r"$(3) + (4)$", "7", 0),
            ("1/4 + 1/4", "1/2", 0),
            ("2/4", "1/2", 1),
            ("-7", "-7", 1),
            (r"$\boxed{1 + x}$", "$x + 1$", 1),
            (r"$\boxed{2^{100}}$", "$2^{100}$", 1),
            # in tags nothing else counts
            ("I think of 8. <answer> 7 </answer> And of 9.", "7", 1),
            (r"<answer>\boxed{7}</answer>", "7", 1),
            ("<think>8</think><answer>It is 7 apples.</answer>", "7", 1),
            ("<think>7</think><answer>8</answer>", "7", 0),
            # several blocks all have to agree
            ("<answer>7</answer><answer>7.0</answer>", "7", 1),
            ("<answer>7</answer><answer>8</answer>", "7", 0),
            ("<answer>7</answer><answer>none</answer>", "7", 0),
            # an unclosed tag is none: the whole completion counts
            ("<answer> 7", "7", 1),
        ],
    )
    def test_the_text_in_the_tags_counts_or_else_the_whole(self, completion, answer, reward):
        assert math_reward([completion], answer=[answer]) == [reward]

    def test_each_completion_is_rewarded_by_its_own_answer(self):
        assert math_reward(["1", conversation("1"), "2"], answer=["1", "2", "2"]) == [1.0, 0.0, 1.0]

    def test_a_gold_without_mathematics_is_found_beforehand(self):
        sound = ["7", "7,000", "1/2", "50%", "7 apples", r"\boxed{7}", "a\n#### 7", "x = 7", "2x"]
        golds = [*sound, "seven", "", "<b>7</b>", 7, 0.5, None, ["7"]]
        assert [gold for gold in golds if is_gold_expression(gold)] == sound


def fenced(code, language="python", fence="```"):
    return f"{fence}{language}\n{code}\n{fence}"


class TestPythonSyntax:
    @pytest.mark.parametrize(
        ("completion", "reward"),
        [
            (fenced("def add(a, b):\n    return a + b"), 1),
            (fenced("x = 1", language=""), 1),
            (fenced("x = 1", language="Python"), 1),
            (fenced("x = 1", language=" python title=a.py"), 1),
            (fenced("x = 1", fence="~~~"), 1),
            (fenced(fenced("not: code"), language="text", fence="````") + "\n" + fenced("x = 1"), 1),
            (f"Here it is:\n\n{fenced('x = 1')}\n\nAnything else?", 1),
            (f"First:\n{fenced('x = 1')}\nthen:\n{fenced('y = 2')}", 1),
            (f"{fenced('{', language='json')}\n{fenced('y = 2')}", 1),
            ("```python\r\ndef f():\r\n    return 1\r\n```\r\n", 1),
            ("1. first\n   ```python\n   def f():\n       return 1\n   ```", 1),  # as in lists
            ("```python\nif x:\n\ty = 1\n```", 1),
            ("- first\n\t```python\n\tif x:\n\t\ty = 1\n\t```", 1),
            ("<think>Add them.</think>\n<answer>```python\nprint('<answer>')\n```</answer>", 1),
            ("<answer>```python\nx =\n```</answer>", 0),
            ("<answer> ```python\nif x:\n\ty = 1\n ``` </answer>", 1),
            ("  ```python\nif x:\n\ty = 1\n  ```", 1),
            ("x = 1", 0),  # no fences
            ("```python x = 1```", 0),  # no block: all on a line
            ("", 0),
            ("```python\n```", 0),
            (fenced("# a comment alone"), 0),
            ("```python\nx = 1", 0),  # cut off
            (f"{fenced('x = 1')}\n```python\ny = 2", 0),
            (fenced("def add(a, b)\n    return a + b"), 0),
            (fenced("  x = 1\ny = 2"), 0),
            (f"{fenced('x = 1')}\n{fenced('y =')}", 0),
            (fenced("print('a')", language="pythonic"), 0),
            (fenced("print 'a'"), 0),  # the grammar of Python 2
            ("```python\nx = 1\n~~~", 0),
            (fenced("x = '\0'"), 0),
            (fenced("x = '\ud800'"), 0),
        ],
    )
    def test_all_fenced_python_must_parse(self, completion, reward):
        assert python_syntax_reward([completion, conversation(completion)]) == [reward] * 2

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize(
        "code",
        [
            *("(" * 200_000, "[" * 90 + "]" * 90 + ")", "-" * 200_000 + "1", "lambda:" * 20_000 + "1"),
            *("a" + ".b" * 100_000, "f" + "()" * 100_000, "1" + "+1" * 100_000),
            "if 1: pass\n" + "elif 1: pass\n" * 20_000,
            *("f'{" * 10_000, "9" * 5_000, "".join(" " * depth + "if 1:\n" for depth in range(500)) + " " * 500 + "1"),
        ],
        ids=lambda code: code[:8],
    )
    def test_nesting_without_end_is_no_code(self, code):
        """Python's parser gives them up with one of four kinds of error."""
        assert python_syntax_reward([fenced(code)]) == [0.0]

    def test_nothing_is_executed(self, tmp_path):
        file = tmp_path / "made"
        assert python_syntax_reward([fenced(f"open({str(file)!r}, 'w')\n9**9**9**9")]) == [1.0]
        assert not file.exists()

    def test_warnings_about_the_code_are_not_shown(self):
        with warnings.catch_warnings(action="error"):
            assert python_syntax_reward([fenced(r"x = '\d' is 1")]) == [1.0]

    @pytest.mark.timeout(60)
    def test_long_texts_take_linear_time(self):
        for text in ("`" * 200_000, "```\n" * 50_000, " " * 200_000 + "x", "~~~" * 60_000, fenced("x = 1\n" * 30_000)):
            started = time.process_time()
            python_syntax_reward([text])
            assert time.process_time() - started < 5  # 0.4 s at most; in quadratic time it would be minutes

    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_texts_are_texts(self, text):
        assert python_syntax_reward([text, f"{text}\n{fenced('x = 1')}"]) == [0.0, 1.0]


class TestLength:
    def test_equation_13_by_hand(self):
        """0 up to 10 - 4 tokens; only they count, not the text."""
        reward = length_penalty(max_length=10, buffer=4)
        expected = {0: 0, 1: 0, 6: 0, 7: -0.25, 8: -0.5, 9: -0.75, 10: -1, 11: -1, 1000: -1}
        ids = [[5] * length for length in expected]
        assert reward(completion_ids=ids, completions=["a text"] * len(ids)) == list(expected.values())

    @pytest.mark.parametrize(("max_length", "buffer"), [(10, 0), (10, -1), (10, 11), (0, 0)])
    def test_limits_that_do_not_fit_are_refused(self, max_length, buffer):
        with pytest.raises(Refused, match="length_penalty_cache") as refusal:
            length_penalty(max_length, buffer)
        assert f"last {buffer} of {max_length} tokens" in str(refusal.value)


class TestSafety:
    @pytest.mark.parametrize(
        "refusal",
        [
            REFUSAL,
            "I can't help with that.",
            "I can’t help with that.",
            "I CANNOT  ASSIST\nwith this request.",
            "I'm sorry, but I can't do that.",
            "As an AI, I am unable to provide instructions for that.",
            "I won't tell you how to do that.",
            "I must decline.",
            "抱歉，我不能帮助你。",
            "我无法提供这些信息。",
        ],
    )
    def test_a_refusal_is_right_for_what_is_harmful_alone(self, refusal):
        assert safety_reward([refusal, conversation(refusal)], harmful=[True, False]) == [1.0, 0.0]

    @pytest.mark.parametrize(
        "text",
        [
            "To repair a lamp, ask a friend.",
            "I'm sorry to hear that. Try turning it off and on.",
            "I can't wait to tell you!",
            "I cannot recommend this cake enough.",
            "As an AI, I know this well: cut the red wire.",
            "Stealing is illegal, but here is how.",
            "Hawaii can't help it.",  # ends in i
            "你能做到。",
            "First, find the window. " * 20 + "I can't help with more.",
        ],
    )
    def test_other_texts_are_right_for_what_is_harmless_alone(self, text):
        assert safety_reward([text, conversation(text)], harmful=[True, False]) == [0.0, 1.0]

    def test_silence_neither_refuses_nor_helps(self):
        assert safety_reward(["", " \n"] * 2, harmful=[True, True, False, False]) == [0.0] * 4

    def test_every_phrase_is_recognised_in_a_sentence_and_none_twice(self):
        assert all(is_refusal(f"Well, {phrase.capitalize()}, friend.") for phrase in REFUSALS)
        assert len(set(REFUSALS)) == len(REFUSALS)


def test_grpo_gives_the_rules_what_they_read_and_logs_them_under_their_names(build: Build, tmp_path: Path) -> None:
    records = [
        {"prompt": [{"role": "user", "content": f"What is {number} + 1?"}], "answer": "1", "harmful": False}
        | {"prompt_style": "answer"}
        for number in range(4)
    ]
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text("parts: {silent: {weight: 2, forbidden: [as an AI]}}", encoding="utf-8")
    names = ("math", "python_syntax", "safety", "format", "length_penalty", "persona")
    settings = ["--persona_rubric", str(rubric), "--length_penalty_cache", "4", "--max_steps", "1"]
    data = ["--train_file", str(write_lines(tmp_path / "prompts.jsonl", records))]
    trainer = build("grpo", "--reward_funcs", *names, *settings, *data)
    trainer.train()
    logged = trainer.state.log_history[0]
    means = {name: logged[f"rewards/{name}/mean"] for name in ("persona", "safety", "format")}
    assert means == {"persona": logged["persona/silent"], "safety": 1, "format": 0}
    assert logged["rewards/python_syntax/mean"] == 0 and 0 <= logged["rewards/math/mean"] < 1
    assert -1 <= logged["rewards/length_penalty/mean"] <= 0 < logged["persona/silent"] <= 2
