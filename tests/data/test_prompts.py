"""The exact texts a model is asked: every published figure depends on them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from r1_aqa_repro.data.prompts import PROMPT_STYLES, build_messages, prompt_text, target_text
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.rollout import question_columns, rows_of

QUESTION = AudioQuestion("1", Path("/clips/a.wav"), "Who speaks in the video?", ("Man", "Woman"), "Woman")
ASKED = "Who speaks in the video? Please choose the answer from the following options: ['Man', 'Woman']."
DEMANDS = {
    "direct": "",
    "answer": " Output the final answer in <answer> </answer>.",
    "think": " Output the thinking process in <think> </think> and final answer in <answer> </answer>.",
}


def test_text_of_each_style():
    assert {style: prompt_text(QUESTION, style) for style in PROMPT_STYLES} == {
        style: ASKED + demand for style, demand in DEMANDS.items()
    }


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("AVQA", "What is the audio, audios about?"),
        ("MMAU", "What is the video, videos about?"),
        (None, "What is the video, videos about?"),
    ],
)
def test_only_avqas_videos_become_audio(dataset, expected):
    question = replace(QUESTION, question="What is the video, videos about?", dataset=dataset)
    assert prompt_text(question, "direct").startswith(expected + " Please")


def test_choices_are_written_as_python_does_and_keep_their_words():
    question = replace(QUESTION, dataset="AVQA", choices=("a dog's video", 'say "hi"', "犬"))
    assert """options: ["a dog's video", 'say "hi"', '犬'].""" in prompt_text(question, "answer")


def test_rendered_prompt(processor):
    rendered = processor.apply_chat_template(
        build_messages(QUESTION, "answer"), add_generation_prompt=True, tokenize=False
    )
    assert rendered == (
        "<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n"
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
        f"{ASKED}{DEMANDS['answer']}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_training_rows_hold_what_rewards_read_and_their_parts_as_built(questions, processor, style):
    """Stored in Arrow, a text part would get `audio: None`, which the chat template counts as a second clip."""
    rows = list(rows_of(questions[:4], partial(question_columns, prompt_style=style)))
    for row, question in zip(rows, questions[:4], strict=True):
        assert row["question"] is question and row["prompt"] == build_messages(question, style)
        asked = {"answer": question.answer, "choices": list(question.choices), "prompt_style": style}  # for the rewards
        assert row.items() >= asked.items()
        audio, text = row["prompt"][0]["content"]
        assert audio == {"type": "audio", "audio": str(question.audio_path)}
        assert text == {"type": "text", "text": prompt_text(question, style)}
        rendered = processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        assert rendered.count("<|AUDIO|>") == 1


def test_the_arrow_pitfall_is_real(processor):
    """Should the template stop counting `audio: None`, the rows could be stored plainly."""
    (message,) = build_messages(QUESTION, "answer")
    message["content"][1]["audio"] = None
    assert processor.apply_chat_template([message], tokenize=False).count("<|AUDIO|>") == 2


def test_targets():
    assert target_text(QUESTION, "direct") == "Woman"
    assert target_text(QUESTION, "answer") == "<answer>Woman</answer>"
