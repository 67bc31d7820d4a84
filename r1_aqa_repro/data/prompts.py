"""The only prompt text of the project: training and evaluation both build their messages here.

The three styles are the prompts of R1-AQA (arXiv 2503.11197, section 2 and its public repository): `direct` is its
prompt 1 (wording not published; taken to be prompt 2 without the last sentence), `answer` its prompt 2 (the 64.5 %
result), `think` its prompt 3.
"""

from __future__ import annotations

import re
from typing import Any

from r1_aqa_repro.data.answers import in_tags
from r1_aqa_repro.data.questions import AudioQuestion

PROMPT_STYLES = ("direct", "answer", "think")

END_OF_TURN = "<|im_end|>"  # ChatML's; a tokenizer's eos token may be another one
SPECIAL_TOKEN = re.compile(r"<\|[^\s<>|]+\|>")  # how Qwen's models spell those that are theirs: `<|AUDIO|>`
_INSTRUCTION = {
    "direct": "",
    "answer": " Output the final answer in <answer> </answer>.",
    "think": " Output the thinking process in <think> </think> and final answer in <answer> </answer>.",
}


def prompt_text(question: AudioQuestion, style: str) -> str:
    """The user's text. `{choices}` is Python's list representation, as in the reference."""
    text = question.question
    if question.dataset == "AVQA":  # AVQA asks about videos; the reference replaces the word for this dataset alone
        text = text.replace("video", "audio")
    return f"{text} Please choose the answer from the following options: {list(question.choices)}.{_INSTRUCTION[style]}"


def build_messages(question: AudioQuestion, style: str) -> list[dict[str, Any]]:
    """The conversation of one question: one audio part, then one text part.

    The system message is the chat template's own default. A part holds only its own key: the template takes any part
    with an `audio` key, even one that is None, for a second clip.
    """
    return [
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": str(question.audio_path)},
                {"type": "text", "text": prompt_text(question, style)},
            ],
        }
    ]


def target_text(question: AudioQuestion, style: str) -> str:
    """What supervised fine-tuning teaches: the answer, in tags if the prompt asks for tags."""
    return str(question.answer) if style == "direct" else in_tags(str(question.answer))
