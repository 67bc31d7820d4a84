"""One question from the command line: the same completion as evaluation's, and what is said about it."""

import io
import sys

import pytest
import soundfile
import torch
from peft import LoraConfig, get_peft_model

from eval.grid import prompts_of
from r1_aqa_repro import ask
from r1_aqa_repro.ask import complete, main, make_question
from r1_aqa_repro.common.escaping import visible
from r1_aqa_repro.model.text_loading import load_policy
from tests.eval.conftest import load_generator
from tests.text_world import perturb


def command(checkpoint, question, *more):
    arguments = ["--ckpt", str(checkpoint), "--audio", str(question.audio_path), "--question", question.question]
    return main([*arguments, "--choices", *question.choices, *more])


@pytest.mark.parametrize("style", ["answer", "direct"])
def test_completion_is_that_of_evaluation(model_folder, questions, style):
    generator = load_generator(model_folder, prompt_style=style)
    for question in questions[:3]:
        asked = make_question(question.audio_path, question.question, question.choices)
        assert [[complete(str(model_folder), asked, style, 6)]] == generator.answer(prompts_of([question]), pytest.fail)


def test_raw_prints_the_completion(model_folder, questions, capsys):
    question = questions[0]
    assert command(model_folder, question, "--raw", "--prompt_style", "direct") == 0
    asked = make_question(question.audio_path, question.question, question.choices)
    assert capsys.readouterr().out == complete(str(model_folder), asked, "direct") + "\n"


@pytest.mark.parametrize(
    ("completion", "printed", "said"),
    [
        ("<answer>High.</answer>", "high\n", ""),
        ("<think>low, then up</think> <answer>(B)</answer>", "high\n", ""),
        ("<answer>a dog</answer>", "a dog\n", "not among the choices"),
        ("<answer></answer>", "", "no answer"),
    ],
)
def test_what_is_said_of_an_answer(questions, monkeypatch, capsys, completion, printed, said):
    monkeypatch.setattr(ask, "complete", lambda *arguments: completion)
    assert command("anything", questions[0]) == 0  # choices: low, high
    output = capsys.readouterr()
    assert output.out == printed
    assert said in output.err
    assert bool(output.err) == bool(said)


def test_what_is_wrong_is_named_at_once(questions, tmp_path, capsys):
    arguments = ["--ckpt", str(tmp_path), "--audio", str(tmp_path / "no.wav"), "--question", " ", "--choices", ""]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    for named in ("there is no such file", "the question is empty", "fewer than two choices", "a choice is empty"):
        assert named in error


def test_clip_that_cannot_be_used(model_folder, questions, tmp_path, capsys):
    choices = ["--question", "What is heard?", "--choices", "low", "high"]
    (tmp_path / "text.wav").write_text("no audio at all")
    soundfile.write(tmp_path / "short.wav", [0.1] * 80, 16_000)
    for clip, reason in (("text.wav", "it is text, not a recording"), ("short.wav", "too short")):
        assert main(["--ckpt", str(model_folder), "--audio", str(tmp_path / clip), *choices]) == 2
        error = capsys.readouterr().err
        assert clip in error
        assert reason in error


def test_no_checkpoint(questions, tmp_path, capsys):
    assert command(tmp_path, questions[0]) == 2
    assert str(tmp_path) in capsys.readouterr().err


# --- Text models

PROMPT = "Name two colours."


def greedy(model, tokenizer, *texts):
    """What transformers' own generation answers to a conversation, the user's turn first, in up to 8 tokens."""
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].size(1) :]
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def adapter(policy, tokenizer, tmp_path_factory):
    """A LoRA adapter of the policy that changes what it says, as users have it on disk."""
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(load_policy(policy), LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"]))
    perturb(model, size=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_model_and_an_adapter_of_it_answer_a_prompt(policy, adapter, tokenizer, capsys):
    printed = {}
    for folder in (policy, adapter):
        assert main(["--ckpt", str(folder), "--prompt", PROMPT, "--max-new-tokens", "8"]) == 0
        printed[folder] = capsys.readouterr().out.removesuffix("\n")
        assert printed[folder] == visible(greedy(load_policy(folder), tokenizer, PROMPT))
    assert printed[policy] != printed[adapter]


def test_a_chat_goes_on_with_what_was_said(adapter, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Why?\n\n"))  # an empty line is no message
    assert main(["--ckpt", str(adapter), "--prompt", PROMPT, "--chat", "--max-new-tokens", "8"]) == 0
    model = load_policy(adapter)
    first = greedy(model, tokenizer, PROMPT)
    second = greedy(model, tokenizer, PROMPT, first, "Why?")
    assert second != greedy(model, tokenizer, "Why?")
    assert capsys.readouterr().out == f"{visible(first)}\n{visible(second)}\n"


def test_a_chat_begins_anew_where_the_model_has_no_room_left(policy, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPT}\n{PROMPT}\n{PROMPT * 400}\n"))
    assert main(["--ckpt", str(policy), "--chat", "--max-new-tokens", "470"]) == 2
    output = capsys.readouterr()
    first, second = output.out.splitlines()
    assert first == second  # nothing lay before it
    assert output.err.count("it begins anew") == 2 and "Shorten it, or lower --max-new-tokens" in output.err


def test_what_is_no_text_model_or_asked_for_both_is_refused(reward_model, model_folder, capsys):
    assert main(["--ckpt", str(reward_model), "--prompt", PROMPT]) == 2
    assert "it is a reward model" in capsys.readouterr().err
    assert main(["--ckpt", str(model_folder), "--chat"]) == 2
    assert "the model is a qwen2_audio, not a qwen2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--ckpt", str(reward_model), "--prompt", PROMPT, "--audio", "clip.wav"])
    with pytest.raises(SystemExit):
        main(["--ckpt", str(reward_model), "--question", "What?"])
    assert "required: --audio, --choices" in capsys.readouterr().err
