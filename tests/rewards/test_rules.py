"""Rewards of completions, with every case that R1-AQA's own reward gets wrong."""

import random

import pytest

from eval.matcher import verdicts
from r1_aqa_repro.data.answers import answer_of
from r1_aqa_repro.rewards.rules import (
    accuracy_reward,
    format_reward,
    lenient_accuracy,
    r1_aqa_accuracy,
    r1_aqa_format,
    random_reward,
)

CHOICES = ["Speaker 1", "Speaker 2", "Both"]


# Gold is `Speaker 1`. Right or wrong by rewards: `accuracy`, `lenient_accuracy`, `r1_aqa_accuracy`; by matchers:
# `official`, `strict`, `letter_aware`. R1-AQA's mathematics parser reads the last number, 1 or 2.
COMPLETIONS = {
    "<answer>Speaker 1</answer>": (1, 1, 1, 1, 1, 1),
    "<answer> Speaker 1 </answer>": (1, 1, 1, 1, 1, 1),
    "Speaker 1": (1, 1, 1, 1, 1, 1),  # no tags: the whole completion
    "<think>Both?</think><answer>Speaker 1</answer>": (1, 1, 1, 1, 1, 1),
    "I hear <answer>Speaker 1</answer> clearly": (1, 1, 1, 1, 1, 1),
    "<answer>speaker 1</answer>": (1, 1, 1, 1, 1, 1),
    "<answer>Speaker 1.</answer>": (1, 1, 1, 1, 1, 1),
    '<answer>"Speaker 1"</answer>': (1, 1, 1, 1, 1, 1),
    "<answer>\nSpeaker 1\n</answer>": (1, 1, 1, 1, 1, 1),
    "<answer>A. Speaker 1</answer>": (1, 1, 1, 1, 0, 1),
    "<answer>(A) Speaker 1</answer>": (1, 1, 1, 1, 0, 1),
    # a letter alone: nothing by the benchmark's rule, so nothing by the reward
    "<answer>A</answer>": (0, 1, 0, 0, 0, 1),
    "A": (0, 1, 0, 0, 0, 1),
    "<answer>(A)</answer>": (0, 1, 0, 0, 0, 1),
    # right by the benchmark's rule without naming the choice: the reward asks for the choice itself
    "<answer>not Speaker 1</answer>": (0, 0, 1, 1, 0, 0),
    "<answer>It is Speaker 1</answer>": (0, 0, 1, 1, 0, 0),
    "<answer>B. Speaker 1</answer>": (0, 0, 1, 1, 0, 0),
    "<answer>1 Speaker</answer>": (0, 0, 0, 1, 0, 0),
    "<answer>Speaker 1": (0, 0, 1, 1, 0, 0),  # an unclosed tag is none
    # wrong
    "<answer>Speaker 2</answer>": (0, 0, 0, 0, 0, 0),
    "<answer>dog 1</answer>": (0, 0, 1, 0, 0, 0),
    "<answer>1</answer>": (0, 0, 0, 0, 0, 0),  # no number to the parser, with a tag before it
    "<answer>B</answer>": (0, 0, 0, 0, 0, 0),
    "<answer>Speaker 1, Speaker 2</answer>": (0, 0, 1, 0, 0, 0),
    "<answer>Speaker 1 or Speaker 2</answer>": (0, 0, 1, 0, 0, 0),
    "<answer></answer>": (0, 0, 0, 0, 0, 0),
    "": (0, 0, 0, 0, 0, 0),
    # several tags: evaluation reads the first
    "<answer>Speaker 2</answer><answer>Speaker 1</answer>": (0, 0, 1, 0, 0, 0),
    "<answer>Speaker 1</answer><answer>Speaker 2</answer>": (1, 0, 1, 1, 1, 1),
    "<answer>Speaker 1</answer><answer></answer>": (1, 0, 1, 1, 1, 1),
    "<answer>Speaker 1</answer><answer>speaker 1</answer>": (1, 1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("completion", COMPLETIONS)
def test_every_reward_and_every_matcher(completion):
    columns = {"answer": ["Speaker 1"], "choices": [CHOICES]}
    rewards = [reward([completion], **columns) for reward in (accuracy_reward, lenient_accuracy, r1_aqa_accuracy)]
    matched = verdicts(answer_of(completion), "Speaker 1", CHOICES)
    assert (*(reward for (reward,) in rewards), *matched.values()) == COMPLETIONS[completion]


@pytest.mark.parametrize(
    ("gold", "choices"),
    [
        ("Speaker 1", CHOICES),
        ("Both", CHOICES),
        ("C", ["B", "C", "A"]),
        ("5", ["-5", "5"]),
        ("dog", ["cat", "dog", "dog"]),
    ],
)
def test_what_accuracy_rewards_the_benchmark_counts_as_right(gold, choices):
    """Of every answer that is made of a choice, and of those of the table."""
    forms = (
        "{0}",
        " {0}.\n",
        "'{0}'",
        "**{0}**",
        "A. {0}",
        "(B) {0}",
        "{0} {0}",
        "a {0}",
        "not {0}",
        "{0}</answer><answer>B",
    )
    answers = [form.format(text) for form in forms for text in (*choices, "A", "B", "C", "", "?", "1", "5")]
    texts = [f"<answer>{answer}</answer>" for answer in answers] + answers + list(COMPLETIONS)
    columns = {"answer": [gold] * len(texts), "choices": [choices] * len(texts)}
    rewarded = [text for text, reward in zip(texts, accuracy_reward(texts, **columns), strict=True) if reward]
    assert f"<answer>{gold}</answer>" in rewarded
    for text in rewarded:
        matched = verdicts(answer_of(text), gold, choices)
        assert matched["official"] and matched["letter_aware"], text


@pytest.mark.parametrize("text", ["both", "Both.", '"Both"', "\nBoth\n", "C. Both", "(C) Both"])
def test_right_answers_without_a_number_that_r1_aqa_gives_nothing_for(text):
    columns = {"answer": ["Both"], "choices": [CHOICES]}
    assert accuracy_reward([f"<answer>{text}</answer>"], **columns) == [1]
    assert r1_aqa_accuracy([f"<answer>{text}</answer>"], **columns) == [0]


@pytest.mark.parametrize(
    ("completion", "style", "strict", "reference"),
    [
        ("<answer>Man</answer>", "answer", 1, 1),
        ("<answer>a\nb</answer>", "answer", 1, 1),
        (" <answer>Man</answer>\n", "answer", 1, 0),  # white space around it
        ("<answer></answer>", "answer", 0, 1),
        ("<answer>Man</answer><answer>Woman</answer>", "answer", 0, 1),
        ("<answer>Man</answer> indeed", "answer", 0, 0),
        ("<think>Hm.</think><answer>Man</answer>", "think", 1, 1),
        ("<think>Hm.\n</think>\n\n<answer>Man</answer>", "think", 1, 1),
        ("<think></think><answer></answer>", "think", 0, 1),
        ("<answer>Man</answer>", "think", 0, 0),
        ("<answer>Man</answer><think>Hm.</think>", "think", 0, 0),
        ("Man", "direct", 1, 1),
        ("<answer>Man</answer>", "direct", 0, 1),
    ],
)
def test_format(completion, style, strict, reference):
    assert format_reward([completion], prompt_style=[style]) == [strict]
    assert r1_aqa_format([completion], prompt_style=[style]) == [reference]


def test_each_completion_is_rewarded_by_its_own_columns():
    rewards = accuracy_reward(
        ["<answer>a</answer>", "<answer>a</answer>", "<answer>b</answer>"],
        answer=["a", "b", "b"],
        choices=[["a", "b"], ["a", "b"], ["b", "c"]],
    )
    assert rewards == [1.0, 0.0, 1.0]
    assert format_reward(["a", "a"], prompt_style=["direct", "answer"]) == [1.0, 0.0]


@pytest.mark.parametrize("function", [accuracy_reward, format_reward, lenient_accuracy, r1_aqa_accuracy, r1_aqa_format])
def test_conversations_and_plain_texts_get_the_same_reward(function):
    """TRL passes conversations where the prompt is one, with the other columns and its own as keywords."""
    texts = ["<answer>Both</answer>", "<answer>Speaker 2</answer>", "Both!"]
    conversations = [[{"role": role, "content": text} for role in ("user", "assistant")] for text in texts]
    conversations[0][0]["content"] = "only the last message counts"
    columns = {
        "answer": ["Both"] * 3,
        "choices": [CHOICES] * 3,
        "prompt_style": ["answer"] * 3,
        "prompts": ["?"] * 3,
        "completion_ids": [[1]] * 3,
        "task": [None] * 3,
        "trainer_state": None,
    }
    rewards = function(completions=texts, **columns)
    assert function(completions=conversations, **columns) == rewards
    assert rewards[0] == 1.0 and all(isinstance(reward, float) for reward in rewards)


def test_random_reward_is_a_fair_coin_that_does_not_listen():
    random.seed(0)
    rewards = random_reward(["<answer>right</answer>"] * 4000, answer=["right"] * 4000)
    assert set(rewards) == {0.0, 1.0}
    assert abs(sum(rewards) / 4000 - 0.5) < 0.03  # about four standard errors
