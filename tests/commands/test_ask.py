"""One question from the command line: the same completion as evaluation's, and what is said about it."""

import pytest
import soundfile

from eval.grid import prompts_of
from r1_aqa_repro import ask
from r1_aqa_repro.ask import complete, main, make_question
from tests.eval.conftest import load_generator


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
