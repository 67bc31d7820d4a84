"""What the paper's configuration makes of the run around its loss: updates, schedule, optimizer, sampling, prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.rollout import Rollout
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.inputs import question_inputs
from tests.paper import paper_trainer

GROUP = 8


class TestUpdates:
    """Two optimizer steps of 4 prompts, 2 at once."""

    STEPS = ("--prompts_per_step", "4", "--max_prompts_per_device", "2", "--max_steps", "2")
    QUICK = ("--max_completion_length", "3", "--reward_funcs", "random", "random")

    def watched(self, trainer: AudioGRPOTrainer) -> list[dict[str, Any]]:
        """Train; for each rollout the step it was made in, its questions and what the loss gets to see."""
        rollouts: list[dict[str, Any]] = []
        original = trainer._generate_and_score_completions

        def watch(inputs: list[dict[str, Any]]) -> dict[str, Any]:
            output = original(inputs)
            asked = {row["question"].id for row in inputs}
            rollouts.append({"step": trainer.state.global_step, "asked": asked, "keys": set(output)})
            return output

        trainer._generate_and_score_completions = watch  # type: ignore[method-assign]
        trainer.train()
        return rollouts

    def test_each_rollout_is_used_once(self, paper):
        trainer = paper(*self.STEPS, *self.QUICK)
        clipping: list[float] = []
        clip = trainer.accelerator.clip_grad_norm_
        trainer.accelerator.clip_grad_norm_ = lambda parameters, max_norm, *rest, **more: (
            clipping.append(max_norm),
            clip(parameters, max_norm, *rest, **more),
        )[1]
        rollouts = self.watched(trainer)
        assert [rollout["step"] for rollout in rollouts] == [0, 0, 1, 1]  # steps x accumulation
        assert len(set.union(*(rollout["asked"] for rollout in rollouts))) == 8  # no question twice
        assert not any("old_per_token_logps" in rollout["keys"] for rollout in rollouts)
        logged = [entry for entry in trainer.state.log_history if "reward" in entry]
        assert len(logged) == 2
        for entry in logged:
            clips = {key: value for key, value in entry.items() if key.startswith("clip_ratio/")}
            assert len(clips) == 5 and not any(clips.values())
        assert clipping == [1.0, 1.0]  # max_grad_norm

    def test_more_iterations_would_reuse_them(self, paper):
        """The control: with 4 updates a rollout there is one in all, and the log-probs at sampling are needed."""
        rollouts = self.watched(paper(*self.STEPS, *self.QUICK, "--num_iterations", "4"))
        assert len(rollouts) == 1 and "old_per_token_logps" in rollouts[0]["keys"]

    def test_gradients_are_clipped_at_max_grad_norm(self, paper):
        """Plain SGD at rate 1 moves the weights by the clipped gradient, here by 1e-3."""
        sgd = ("--optim", "sgd", "--learning_rate", "1.0", "--lr_scheduler_type", "constant")
        trainer = paper(*self.STEPS, *self.QUICK, *sgd, "--max_grad_norm", "1e-3", "--max_steps", "1")
        before = torch.cat([value.detach().double().ravel() for value in trainer.model.parameters()])
        trainer.train()
        after = torch.cat([value.detach().double().ravel() for value in trainer.model.parameters()])
        assert trainer.state.log_history[0]["grad_norm"] > 1e-2  # there was something to clip
        # ~40,000 float32 weights of size ~0.1 are rounded by ~3e-9 each: 6e-7 in all; TRL adds 1e-6 to the norm
        assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


class TestOptimizer:
    def rates(self, trainer: AudioGRPOTrainer) -> list[float]:
        """The learning rate of each of 1000 steps, and the one after them."""
        trainer.create_optimizer_and_scheduler(num_training_steps=trainer.args.max_steps)
        rates = []
        for _ in range(1001):
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            trainer.optimizer.step()  # without gradients
            trainer.lr_scheduler.step()
        return rates

    def test_learning_rate_falls_linearly_to_zero(self, paper):
        trainer = paper()
        assert trainer.args.max_steps == 1000
        rates = self.rates(trainer)
        for step in (0, 1, 500, 999, 1000):
            assert rates[step] == pytest.approx(1e-6 * (1 - step / 1000), rel=1e-12, abs=1e-20), step
        np.testing.assert_allclose(rates, 1e-6 * (1 - np.arange(1001) / 1000), rtol=1e-9, atol=1e-20)

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ((), {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "lr": 1e-6}),
            (
                # every value unlike the library's default, since the paper's are the defaults
                ("--adam_beta1", "0.8", "--adam_beta2", "0.9", "--adam_epsilon", "1e-6", "--weight_decay", "0.1"),
                {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1, "lr": 1e-6},
            ),
        ],
        ids=["paper", "others"],
    )
    def test_the_settings_reach_adamw(self, paper, overrides, expected):
        trainer = paper(*overrides)
        optimizer = trainer.create_optimizer()
        assert type(optimizer) is torch.optim.AdamW
        decayed, others = optimizer.param_groups  # biases and norms are never decayed
        assert {key: decayed[key] for key in expected} == expected
        assert {key: others[key] for key in expected} == expected | {"weight_decay": 0.0}
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        left_out = [name for name, value in trainer.model.named_parameters() if id(value) not in trained]
        assert left_out == ["model.audio_tower.embed_positions.weight"]  # frozen in Qwen2-Audio; all else is trained


class TestSampling:
    NUM_SAMPLES = 12_000

    @classmethod
    def bound(cls, num_tokens: int) -> float:
        """How far draws may lie from their own distribution over so many tokens, in total variation.

        At most sqrt(num_tokens / n) / 2 in the mean (Cauchy-Schwarz); farther than that by 0.03 with probability
        exp(-2 n 0.03^2) = 4e-10 (McDiarmid). With 50 tokens: 0.062.
        """
        return 0.5 * (num_tokens / cls.NUM_SAMPLES) ** 0.5 + 0.03

    @pytest.fixture
    def sharp(self, model_folder: Path, tmp_path: Path) -> Path:
        """The test model with a head five times as large: its next token is far from evenly distributed."""
        model, processor = loading.load(model_folder)
        with torch.no_grad():
            model.lm_head.weight.mul_(5)
        model.save_pretrained(tmp_path / "sharp")
        processor.save_pretrained(tmp_path / "sharp")
        return tmp_path / "sharp"

    @pytest.fixture
    def draw(self, sharp: Path, questions: list[AudioQuestion], tmp_path: Path) -> Callable[..., Any]:
        """Many first tokens of one question, generated as in training, and the logits [vocabulary] they are drawn by.

        float64; the audio token, which must not be said, has none.
        """

        def of(*override: str, folder: Path = sharp) -> tuple[list[int], np.ndarray]:
            trainer = paper_trainer(tmp_path / "run", folder, questions, "--max_completion_length", "1", *override)
            inputs = question_inputs(trainer.processing_class, questions[:1], "answer")
            torch.manual_seed(0)
            with trainer._working_on(Rollout(inputs, torch.zeros(self.NUM_SAMPLES, dtype=torch.long))):
                completions, _ = trainer._generate_single_turn([], None, {}, GROUP)
            ids = torch.tensor(inputs.prompt_ids)
            with torch.no_grad():
                output = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs.audio("cpu"))
            logits = output.logits[0, -1].double().numpy()
            logits[trainer.generation_config.suppress_tokens] = -np.inf
            return [completion[0] for completion in completions], logits

        return of

    @staticmethod
    def distribution(logits: np.ndarray, temperature: float = 1.0, top_k: int | None = 50) -> np.ndarray:
        kept = np.sort(logits)[-top_k:].min() if top_k else -np.inf
        weights = np.where(logits >= kept, np.exp(logits / temperature), 0)
        return weights / weights.sum()

    @staticmethod
    def distance(one: np.ndarray, other: np.ndarray) -> float:
        """Total variation, 0 to 1."""
        return float(np.abs(one - other).sum() / 2)

    def test_generation_config(self, paper):
        config = paper().generation_config
        settings = (config.do_sample, config.temperature, config.top_k, config.top_p, config.repetition_penalty)
        assert settings == (True, 1.0, 50, 1.0, 1.0)
        assert config.max_new_tokens == 256

    def test_tokens_are_drawn_from_the_50_most_likely(self, draw):
        drawn, logits = draw()
        expected = self.distribution(logits)
        assert set(drawn) <= set(np.flatnonzero(expected))
        frequencies = np.bincount(drawn, minlength=len(logits)) / self.NUM_SAMPLES
        assert self.distance(frequencies, expected) < self.bound(50)
        # what else might have been sampled from lies outside the bound
        others = {
            "the full softmax": self.distribution(logits, top_k=None),
            "top 20": self.distribution(logits, top_k=20),
            "temperature 0.5": self.distribution(logits, temperature=0.5),
            "temperature 1.5": self.distribution(logits, temperature=1.5),
        }
        for name, other in others.items():
            assert self.distance(frequencies, other) > self.bound(50), name

    @pytest.mark.parametrize(
        "own",
        [
            # as Qwen2-Audio-7B-Instruct has it, but harsher
            {"do_sample": True, "temperature": 0.1, "top_k": 3, "top_p": 0.5, "repetition_penalty": 2.0, "min_p": 0.1},
            {"do_sample": False, "num_beams": 2, "no_repeat_ngram_size": 1},
        ],
        ids=lambda own: ", ".join(own),
    )
    def test_the_checkpoints_own_settings_do_not_leak(self, sharp, draw, tmp_path, own):
        folder = Path(shutil.copytree(sharp, tmp_path / "own"))
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | own), encoding="utf-8")
        assert draw(folder=folder)[0] == draw()[0]


class TestPromptsOfAStep:
    @pytest.fixture
    def step_questions(self, questions: list[AudioQuestion]) -> list[AudioQuestion]:
        """Three steps' worth of questions. Nothing is computed with them."""
        return [replace(questions[0], id=f"q{index}") for index in range(48)]

    def steps(
        self, folder: Path, model_folder: Path, asked: list[AudioQuestion], processes: int, monkeypatch: Any
    ) -> list[list[list[list[str]]]]:
        """Question ids by step, rank, batch and row, from the trainer's own loader as accelerate shards it."""
        with monkeypatch.context() as patch:
            # as a process of a torchrun of that many sees it when the configuration is read, but with no process group
            patch.setattr("r1_aqa_repro.run.arguments.num_processes", lambda: processes)
            patch.setattr(TrainingArguments, "world_size", property(lambda _: processes))
            trainer = paper_trainer(folder, model_folder, asked)
            loaders = []
            for rank in range(processes):

                def shard(loader: DataLoader, rank: int = rank) -> DataLoader:
                    names = ("split_batches", "even_batches", "dispatch_batches", "use_seedable_sampler")
                    settings = {name: getattr(trainer.accelerator, name) for name in names}
                    return prepare_data_loader(loader, num_processes=processes, process_index=rank, **settings)

                patch.setattr(trainer.accelerator, "prepare", shard)
                loader = trainer.get_train_dataloader()
                # past accelerate's look-ahead, which wants the process group to be there
                loaders.append([[row["question"].id for row in batch] for batch in DataLoader.__iter__(loader)])
        each = trainer.args.gradient_accumulation_steps
        assert {len(batches) % each for batches in loaders} == {0}
        return [[batches[start : start + each] for batches in loaders] for start in range(0, len(loaders[0]), each)]

    def test_the_same_questions_on_any_number_of_processes(self, model_folder, step_questions, tmp_path, monkeypatch):
        by_processes = {
            processes: self.steps(tmp_path, model_folder, step_questions, processes, monkeypatch)
            for processes in (1, 2, 4, 8)
        }
        alone = [{name for rank in step for batch in rank for name in batch} for step in by_processes[1]]
        assert [len(step) for step in alone] == [16, 16, 16]
        assert len(set.union(*alone)) == 48
        for processes, steps in by_processes.items():
            assert len(steps) == 3
            for step, expected in zip(steps, alone, strict=True):
                rows = [name for rank in step for batch in rank for name in batch]
                assert len(rows) == 128 and set(rows) == expected, processes
                for rank in step:
                    for batch in rank:  # whole groups, on one process and in a row
                        assert all(len(set(batch[at : at + GROUP])) == 1 for at in range(0, len(batch), GROUP))
                assert all(rows.count(name) == GROUP for name in expected)

    def test_the_order_is_the_seeds(self, model_folder, step_questions, tmp_path):
        """Shuffled by `seed`; `data_seed` is recorded for the paper's sake and changes nothing here."""

        def order(*overrides: str) -> list[int]:
            trainer = paper_trainer(tmp_path, model_folder, step_questions, *overrides)
            return list(trainer._get_train_sampler())

        paper = order()
        assert paper[::GROUP] != sorted(paper[::GROUP])
        assert order("--seed", "43") != paper
        assert order("--shuffle_dataset", "false")[::GROUP] == list(range(48))
        assert order("--data_seed", "7") == paper
