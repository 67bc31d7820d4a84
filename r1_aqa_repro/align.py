"""Give the fresh projector of a Qwen2-Audio a start: what a clip sounds like comes to lie near the words for it.

    python -m r1_aqa_repro.align --config configs/align_small.yaml --model DIR --data MANIFEST --out DIR

A projector drawn at random tells the language model nothing, and supervised fine-tuning has to find everything at once.
This sets it in closed form: by ridge regression from the frozen audio encoder's features to the embeddings of the
right answers, scaled until its outputs are as large as the embeddings of tokens. Encoder and language model stay as
they are. It takes one pass of the encoder over the clips, on the GPU if there is one.

It is a supervised stage: it reads the answers of the questions in --data. Give it training questions only.

The new folder is a checkpoint like any other. `align.json` in it and the model card say what it was made of. The keys
of --config are the other options; those on the command line override it.

Exit codes: 0 done; 1 the features tell nothing of the answers, or the disk filled up; 2 refused before anything was
computed; 130 interrupted, nothing is left.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.console import Options, one_of, positive_number, say
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, Problem, Refused, answer_at_once, collecting, command
from r1_aqa_repro.common.escaping import code
from r1_aqa_repro.common.files import (
    lock_beside,
    open_file,
    output_folder,
    sole_use,
    unreadable,
    whole_folder,
    write_atomically,
    write_json,
)
from r1_aqa_repro.data.audio import CHANNELS
from r1_aqa_repro.data.yaml_file import as_options, read_yaml

RIDGE = 0.03


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, of the command line or else of the configuration that it names.

    Raises:
        Refused: the configuration cannot be read, has an unknown key or a value that does not fit.
    """
    parser = _parser()
    config = parser.parse_args(argv).config
    if config is not None:
        parser.set_defaults(**as_options(read_yaml(config), _READ, config))
    given = parser.parse_args(argv)
    if missing := [f"--{name}" for name in ("model", "data", "out") if getattr(given, name) is None]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return given


# the options, and how each is read on the command line and in a configuration
_READ: dict[str, Callable[[str], Any]] = {
    "model": str,
    "data": Path,
    "out": output_folder,
    "ridge": positive_number,
    "audio_channel": one_of(CHANNELS),
}


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.align")

    def add(name: str, metavar: str, text: str, default: Any = None) -> None:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=_READ[name], metavar=metavar, help=text, default=default)

    parser.add_argument("--config", metavar="FILE", help="YAML file of the other options")
    add("model", "DIR_OR_HUB_ID", "the Qwen2-Audio whose projector is to be set")
    add("data", "FILE", "training questions with their answers: a manifest, JSONL or MMAU JSON file")
    add("out", "DIR", "folder to make")
    add("ridge", "X", f"penalty, in units of the mean variance of a feature (default: {RIDGE})", RIDGE)
    add("audio_channel", "|".join(CHANNELS), "of several channels (default: first)", "first")
    return parser


answer_at_once(__name__, _arguments)

import torch
import yaml
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, Qwen2AudioForConditionalGeneration

from r1_aqa_repro.data.prompts import PROMPT_STYLES
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, with_answers
from r1_aqa_repro.model.files import adapter_config, make_portable, model_digest, processor_files
from r1_aqa_repro.model.generation import device_and_dtype
from r1_aqa_repro.model.inputs import minimum_seconds, question_inputs
from r1_aqa_repro.model.loading import (
    check_model_folder,
    check_pair,
    check_tensors,
    load_model,
    load_processor,
    num_parameters,
)
from r1_aqa_repro.model.plain_text import plain
from r1_aqa_repro.run.checks import check_free_space
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.run.folder import data_hashes, provenance
from r1_aqa_repro.run.model_card import CARD

ACCOUNT = "align.json"
_NOTHING = 1e-9  # share of the variance: what is explained below it is rounding


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    given = _arguments(argv)
    with sole_use(lock_beside(given.out), "Choose another --out."):
        questions, dtype = _check(given)
        processor, model = load_processor(given.model), load_model(given.model, dtype)
        fit = align(model.to(device_and_dtype()[0]), processor, questions, given.ridge, given.audio_channel)
        say(f"{fit.clips:,} clips, {fit.tokens:,} audio tokens, R2 {fit.r2:.3f} of the answers' embeddings")
        files = processor_files(given.model)
        account = {
            "model": {given.model: model_digest(given.model)},
            "data": data_hashes(given.data),
            "ridge": given.ridge,
            "audio_channel": given.audio_channel,
            **asdict(fit),
            **provenance(),
        }
        with whole_folder(given.out) as folder:
            model.cpu().save_pretrained(folder)
            make_portable(folder, files)
            write_json(folder / ACCOUNT, account)
            write_atomically(folder / CARD, _card(given, account))
    say(f"wrote {given.out}")
    return EXIT_DONE


@dataclass(frozen=True)
class Fit:
    """What the projector was fitted to: different clips and answers, audio tokens, and the weighted share of the
    variance of the answers' embeddings that the regression explains (R2, at most 1), before its outputs are scaled."""

    clips: int
    answers: int
    tokens: int
    r2: float


@torch.no_grad()
def align(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[AudioQuestion],
    ridge: float = RIDGE,
    channel: str = "first",
) -> Fit:
    """Set the projector of `model`, in which everything else stays as it is.

    Every audio token of a clip is to predict the clip's target: the mean embedding of its answer's tokens (of several
    answers, to different questions, the mean of theirs). All clips count the same, however long they are and however
    often they are asked about. The outputs are then scaled about their mean: their mean is that of all token
    embeddings, and so is the mean square of their distance from it.

    Clips are encoded one by one in float32, as training encodes them, and only sums over their features are kept.

    Args:
        model: on the device that is to encode; its encoder takes trimmed clips, as `load_model` has it.
        questions: each with its answer.
        ridge: penalty on the squared coefficients, in units of the mean variance of a feature; above 0.
        channel: of clips that have several.

    Raises:
        AudioError: a clip cannot be decoded.
        Failed: the features tell nothing of the answers.
    """
    encoder, projector = model.model.audio_tower, model.model.multi_modal_projector.linear
    table, dtype, is_training = model.get_input_embeddings().weight, projector.weight.dtype, model.training
    answers, asked = answers_by_clip(questions), {question.audio_path: question for question in questions}
    sums = Sums(projector.in_features, projector.out_features, table.device)
    encoder.float().eval()
    interval = 0.5 if sys.stderr.isatty() else 30.0  # seconds: a log file keeps every redraw
    for clip, texts in tqdm(answers.items(), "encoding", unit="clip", mininterval=interval, maxinterval=interval):
        inputs = question_inputs(processor, [asked[clip]], PROMPT_STYLES[0], channel)
        features = encoder.encode(inputs.input_features, inputs.feature_attention_mask).T  # [tokens, d_model]
        embedded = [embedding_of(text, processor.tokenizer, table) for text in sorted(texts)]
        sums.add(features, torch.stack(embedded).mean(0))
    encoder.to(dtype).train(is_training)
    coefficients, r2, variance = sums.solve(ridge)
    if not r2 > _NOTHING:
        raise Failed("the encoder's features tell nothing of the answers: are the clips silent, or all the same?")
    parts = table.split(8192)  # all of it in float64 would be 5 GB at 7B
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(table)
    size = torch.stack([(part.double() - mean).square().sum() for part in parts]).sum() / table.numel()
    coefficients *= (size / variance).sqrt()
    projector.weight.copy_(coefficients.T)
    projector.bias.copy_(mean - sums.mean_feature @ coefficients)
    return Fit(len(answers), len(set().union(*answers.values())), sums.tokens, float(r2))


def answers_by_clip(questions: Sequence[AudioQuestion]) -> dict[Path, set[str]]:
    """The different right answers to what is asked about each clip."""
    answers: dict[Path, set[str]] = {}
    for question in questions:
        answers.setdefault(question.audio_path, set()).add(str(question.answer))
    return answers


def embedding_of(answer: str, tokenizer: PreTrainedTokenizerBase, table: torch.Tensor) -> torch.Tensor:
    """The mean embedding [hidden], float64, of the tokens of an answer within a sentence: after a space.

    `table` is that of all tokens, [vocabulary, hidden].
    """
    ids = tokenizer(plain(tokenizer, f" {answer}"), add_special_tokens=False)["input_ids"]
    return table[ids].double().mean(0)


class Sums:
    """Ridge regression with an intercept of one target a clip on each of the clip's features, from sums in float64.

    A feature is weighted by 1 over the number of its clip's features, so that a clip counts as one.
    """

    def __init__(self, width: int, height: int, device: torch.device | str = "cpu"):
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.clips, self.tokens = 0, 0
        self.feature, self.target = zeros(width), zeros(height)
        self.features = zeros(width, width)  # of their outer products
        self.product = zeros(width, height)  # of features with targets
        self.square = zeros(())  # of targets

    def add(self, features: torch.Tensor, target: torch.Tensor) -> None:
        """Add a clip: its features [tokens, width] and their one target [height]."""
        features, target = features.double(), target.double()
        self.clips, self.tokens = self.clips + 1, self.tokens + len(features)
        self.feature += features.mean(0)
        self.target += target
        self.features += features.T @ features / len(features)
        self.product += torch.outer(features.mean(0), target)
        self.square += target.square().sum()

    @property
    def mean_feature(self) -> torch.Tensor:
        return self.feature / self.clips

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Coefficients [width, height] of centred features for centred targets; R2; the variance of what they give for
        the features, in the mean over the `height` outputs.

        `ridge` is in units of the mean variance of a feature.
        """
        target = self.target / self.clips
        covariance = self.features / self.clips - torch.outer(self.mean_feature, self.mean_feature)
        product = self.product / self.clips - torch.outer(self.mean_feature, target)
        variance = self.square / self.clips - target.square().sum()
        penalty = ridge * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        coefficients = torch.linalg.solve(covariance + penalty, product)
        fitted = (coefficients * (covariance @ coefficients)).sum()
        residual = variance - 2 * (coefficients * product).sum() + fitted
        return coefficients, 1 - residual / variance, fitted / len(target)


def _check(given: argparse.Namespace) -> tuple[list[AudioQuestion], torch.dtype]:
    """The questions, and the type that the model's weights have.

    Raises:
        Refused: with everything that is wrong with model, questions, clips and output folder.
    """
    problems = []
    if given.out.exists():
        problems.append(Problem(str(given.out), "is there already", "Choose another --out, or delete it."))
    shortest, dtype = 0.0, torch.float32
    with collecting(problems):
        if adapter_config(given.model) is not None:
            remedy = "Merge it into its base with r1_aqa_repro.merge_adapter, or give the base."
            raise Refused.because(given.model, "it is an adapter, which has no projector of its own", remedy)
        config, processor = check_model_folder(given.model), load_processor(given.model)
        check_pair(config, processor, given.model)
        check_tensors(Qwen2AudioForConditionalGeneration, given.model)
        shortest, dtype = minimum_seconds(processor), config.dtype or torch.float32
        full = check_free_space(given.out.parent, num_parameters(config) * dtype.itemsize, "the aligned weights")
        problems += [Problem(one.where, one.what, "Free some space, or choose another --out.") for one in full]
    questions: list[AudioQuestion] = []
    with collecting(problems):
        read = read_questions(given.data)
        questions = read.records
        problems += read.problems + with_answers(questions, given.data)
        if questions and len(set(map(frozenset, answers_by_clip(questions).values()))) < 2:
            what = "all clips have the same answer, so that there is nothing to tell apart"
            problems.append(Problem(str(given.data), what, "Give questions with different answers."))
    if not problems:  # to decode them takes the longest
        problems += _bad_clips(given, questions, shortest)
    if problems:
        raise Refused(problems)
    return questions, dtype


def _bad_clips(given: argparse.Namespace, questions: Sequence[AudioQuestion], shortest: float) -> list[Problem]:
    bad = Clips(given.out).measure([question.audio_path for question in questions], shortest, decode=True)
    return [
        Problem(f"{given.data}: {one.id}", f"{one.audio_path}: {bad[one.audio_path]}", "Restore or remove the clip.")
        for one in questions
        if one.audio_path in bad
    ]


def _card(given: argparse.Namespace, account: Mapping[str, Any]) -> str:
    """The model's own card, with a section on how its projector was set."""
    own, on_hub = Path(given.model) / CARD, not Path(given.model).is_dir()
    if unreadable(own) is None:
        with open_file(own) as file:
            text = file.read().decode("utf-8", "replace").rstrip()
    else:
        base = yaml.safe_dump({"base_model": given.model}, width=math.inf) if on_hub else ""
        text = f"---\nlibrary_name: transformers\n{base}---\n\n# {code(given.out.absolute().name)}"
    data = ", ".join(f"{code(path)} (SHA-256 {digest})" for path, digest in account["data"].items())
    return f"""{text}

## Alignment

What stands above is of {code(given.model)}. `r1_aqa_repro.align` has replaced its projector: by ridge regression from
the audio encoder's features to the embeddings of the right answers. This is supervised: the answers of these questions
are in it, and it must not be evaluated on them.

- questions: {data}
- {account["clips"]:,} clips with {account["answers"]:,} different answers, {account["tokens"]:,} audio tokens
- ridge {given.ridge:g}; audio channel {given.audio_channel}
- R2 on these clips: {account["r2"]:.3f}
"""


if __name__ == "__main__":
    main()
