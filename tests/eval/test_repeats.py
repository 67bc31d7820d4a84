"""Several completions a question, several orders of its choices, and what memory makes of a batch."""

import json
from dataclasses import replace
from itertools import chain

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LogitsProcessorList

import eval.generation
from eval.checkpoints import decoding_settings
from eval.generation import Draw, checkpoint_config, draws_of
from eval.grid import batches, choice_orders, prompts_of, seconds_of, share_of
from eval.mmau import main
from r1_aqa_repro.data.questions import AudioQuestion, read_questions
from r1_aqa_repro.model import generation, loading
from r1_aqa_repro.model.inputs import question_inputs
from tests.eval.conftest import OWN, completions, cut, evaluate, limit_memory, load_generator, set_own_decoding
from tests.files import read_json, read_lines

REPEATS = 3
SAMPLED = ("--decoding", "checkpoint", "--repeats", REPEATS)


@pytest.fixture(scope="module")
def sampled(sampling, data, tmp_path_factory):
    """Three sampled completions of each question, all questions at once."""
    out = tmp_path_factory.mktemp("sampled") / "out"
    assert evaluate(sampling, data, out, *SAMPLED, "--batch-size", 16) == 0
    return out


def failing(error):
    def generate(*args, **options):
        raise error

    return generate


class TestRepeats:
    def test_one_line_a_question_and_repeat(self, sampled, data):
        ids = [question.id for question in read_questions(data).records]
        assert list(completions(sampled)) == [(i, r) for i in ids for r in range(REPEATS)]
        assert not any("order" in one for one in read_lines(sampled / "predictions.jsonl"))
        assert len(set(completions(sampled).values())) > 24  # or what follows would mean little
        settings = read_json(sampled / "settings.json")["settings"]
        assert (settings["decoding"], settings["repeats"]) == ("checkpoint", REPEATS)
        assert settings["generation_config"] == OWN
        scores = read_json(sampled / "scores.json")
        assert (scores["n"], scores["repeats"]["count"]) == (12, REPEATS)

    @pytest.mark.parametrize("batch_size", [1, 5])
    def test_the_batch_size_changes_nothing(self, sampling, data, sampled, answers, batch_size):
        assert answers(sampling, data, *SAMPLED, "--batch-size", batch_size) == completions(sampled)

    def test_fewer_repeats_are_the_first_ones(self, sampling, data, sampled, answers):
        fewer = answers(sampling, data, "--decoding", "checkpoint", "--limit", 4)
        assert len(fewer) == 4 and fewer.items() <= completions(sampled).items()

    def test_greedy_repeats_are_the_same_and_that_is_said(self, model, data, answers, capsys):
        texts = answers(model, data, "--repeats", 2, "--limit", 3)
        assert "repeats of a question will be the same" in capsys.readouterr().err
        assert all(texts[question_id, 0] == texts[question_id, 1] for question_id, _ in texts)

    def test_a_lost_clip_is_lost_in_every_repeat(self, sampling, manifest, tmp_path, capsys):
        read_questions(manifest).records[0].audio_path.unlink()
        more = ("--decoding", "checkpoint", "--repeats", 2, "--limit", 3)
        assert evaluate(sampling, manifest, tmp_path / "out", *more) == 3
        assert [text is None for text in completions(tmp_path / "out").values()] == [True, True, *[False] * 4]
        assert capsys.readouterr().err.count("has no audio") == 1


class TestOwnDecoding:
    def test_greedy_with_a_penalty_is_what_generate_gives(self, checkpoint, data, answers):
        """Question by question, with nothing of this project between: no sharing, no padding."""
        set_own_decoding(checkpoint, do_sample=False, repetition_penalty=1.5, no_repeat_ngram_size=2)
        own = answers(checkpoint, data, "--decoding", "checkpoint", "--batch-size", 16)
        model, processor = loading.load(checkpoint)
        expected = []
        for question in read_questions(data).records:
            inputs = question_inputs(processor, [question], "answer")
            ids = torch.tensor(inputs.prompt_ids)
            mask = torch.ones_like(ids)
            audio = inputs.audio("cpu", trim=False)
            suppressed = [model.config.audio_token_id]
            output = model.generate(ids, attention_mask=mask, **audio, max_new_tokens=6, suppress_tokens=suppressed)
            expected.append(processor.tokenizer.decode(output[0, ids.size(1) :], skip_special_tokens=True))
        assert list(own.values()) == expected != list(answers(checkpoint, data).values())

    def test_the_distribution_is_the_one_that_generate_samples_from(self, sampling):
        model = loading.load_model(sampling)
        greedy = GenerationConfig(max_new_tokens=4, eos_token_id=[1], pad_token_id=0, suppress_tokens=[3])
        own = OWN | {"min_p": 0.01, "typical_p": 0.9}
        config, warpers = checkpoint_config(greedy, own)
        assert (config.do_sample, config.repetition_penalty, config.top_k) == (False, 1.3, None)
        torch.manual_seed(0)
        scores = 3 * torch.randn(5, model.config.text_config.vocab_size)
        theirs = GenerationConfig(**{name: value for name, value in own.items() if name != "repetition_penalty"})
        reference = model._get_logits_processor(theirs, input_ids_seq_length=2, logits_processor=LogitsProcessorList())
        ids = torch.zeros(5, 2, dtype=torch.long)
        assert torch.equal(warpers(ids, scores.clone()), reference(ids, scores.clone()))

    def test_draws_fall_as_often_on_a_token_as_its_probability_says(self):
        scores = torch.tensor([[0.5, 0.0, 0.2, 0.3, 0.0]]).log()
        thousand = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        drawn = [Draw(u.reshape(1, 1), 7)(torch.zeros(1, 7), scores).argmax().item() for u in thousand]
        assert [drawn.count(token) for token in range(5)] == [500, 0, 200, 300, 0]
        lowest, highest = torch.tensor([[[0.0]], [[1 - 2**-53]]], dtype=torch.float64)
        zero_first = torch.tensor([[0.0, 1.0, 0.0]]).log()
        for extreme in (lowest, highest):
            assert Draw(extreme, 7)(torch.zeros(1, 7), zero_first).argmax() == 1

    def test_draws_differ_between_questions_and_repeats(self):
        assert draws_of(("a", 0), 3).tolist() == draws_of(("a", 0), 5)[:3].tolist()
        assert len({draws_of(key, 1)[0] for key in [("a", 0), ("a", 1), ("b", 0), ("1 a", 0), ("a", 11)]}) == 5

    def test_sampling_as_training_does_is_that_of_a_checkpoint_that_says_so(self, checkpoint, data, answers):
        as_training = answers(checkpoint, data, "--decoding", "sample", "--repeats", 2)
        set_own_decoding(checkpoint, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        assert as_training == answers(checkpoint, data, "--decoding", "checkpoint", "--repeats", 2)

    def test_sharing_the_prompt_changes_no_sample(self, sampling, data, sampled, monkeypatch):
        plain = generation.generate
        monkeypatch.setattr(generation, "generate", lambda *a, **options: plain(*a, share=False, **options))
        generator = load_generator(sampling, decoding_settings(sampling))
        asked = prompts_of(read_questions(data).records, REPEATS)
        expected = completions(sampled)
        for one, texts in zip(asked, generator.answer(asked, pytest.fail), strict=True):
            assert texts == [expected[key] for key in one.keys]

    @pytest.mark.parametrize(
        ("own", "settings"),
        [
            ({}, {"do_sample": False}),
            ({"temperature": None, "top_k": 7, "max_new_tokens": 99}, {"do_sample": False, "top_k": 7}),
            ({"do_sample": True, "top_p": 0.5}, {"do_sample": True, "top_p": 0.5, "top_k": 50}),
            ({"do_sample": True, "top_k": 0}, {"do_sample": True, "top_k": 0}),
        ],
    )
    def test_what_is_taken_from_a_generation_config(self, tmp_path, own, settings):
        (tmp_path / "generation_config.json").write_text(json.dumps(own), encoding="utf-8")
        assert decoding_settings(tmp_path) == settings


class TestOrders:
    question = AudioQuestion("q", None, "What?", ("a", "b", "c", "c"), "a")  # type: ignore[arg-type]

    def test_orders_differ_and_the_first_is_the_files(self):
        orders = choice_orders(self.question, 14)
        assert orders[0] == self.question.choices
        assert len(set(orders[:12])) == 12  # 4! / 2 texts differ
        assert orders[12:] == orders[:2]
        assert all(sorted(order) == ["a", "b", "c", "c"] for order in orders)
        assert choice_orders(self.question, 3) == orders[:3]
        assert choice_orders(replace(self.question, id="another"), 12) != orders[:12]

    def test_asked_and_recorded(self, sampling, data, tmp_path):
        out = tmp_path / "out"
        more = ("--decoding", "checkpoint", "--repeats", 2, "--permute-choices", 3, "--batch-size", 4)
        assert evaluate(sampling, data, out, *more) == 0
        questions = read_questions(data).records
        lines = read_lines(out / "predictions.jsonl")
        assert list(completions(out)) == [(q.id, r) for q in questions for r in range(6)]
        for index, question in enumerate(questions):
            orders = [tuple(one["order"]) for one in lines[6 * index : 6 * index + 6]]
            assert orders == [order for order in choice_orders(question, 3) for _ in range(2)]
        hashes = {one["question_hash"] for one in lines}
        assert len(hashes) == sum(len(set(choice_orders(question, 3))) for question in questions)
        content = (out / "predictions.jsonl").read_bytes()
        cut(out, 0.5)
        assert evaluate(sampling, data, out, *more) == 0
        assert (out / "predictions.jsonl").read_bytes() == content
        (out / "predictions.jsonl").write_bytes(content.replace(b'"order": [', b'"order": ["x", ', 1))
        assert evaluate(sampling, data, out, *more) == 2

    def test_the_order_reaches_the_model(self, model, data, answers):
        texts, own = answers(model, data, "--permute-choices", 2), answers(model, data)
        assert own.items() <= texts.items()
        assert sum(texts[question_id, 0] != texts[question_id, 1] for question_id, _ in own) > 6


class TestMemory:
    def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
        self, model, data, answers, tmp_path, monkeypatch, capsys
    ):
        expected = answers(model, data, "--batch-size", 1)
        tried = limit_memory(monkeypatch, 3)
        out = tmp_path / "out"
        assert evaluate(model, data, out, "--batch-size", "auto") == 0
        assert tried == [12, 8, 4, *[2] * 6]
        assert completions(out) == expected
        assert "going on with 2" in capsys.readouterr().err
        assert read_json(out / "settings.json")["batch_sizes"] == [16, 8, 4, 2]
        content = (out / "predictions.jsonl").read_bytes()
        cut(out, 0.5)
        tried.clear()
        assert evaluate(model, data, out, "--batch-size", "auto") == 0
        assert (out / "predictions.jsonl").read_bytes() == content
        assert set(tried) == {2} and len(tried) < 6  # what was found is remembered

    def test_what_does_not_fit_alone_ends_with_a_message(self, model, data, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(generation, "generate", failing(torch.OutOfMemoryError("CUDA out of memory.")))
        assert evaluate(model, data, tmp_path / "out") == 1
        assert "a single question at a time" in capsys.readouterr().err

    def test_other_failures_are_not_taken_for_it(self, model, data, tmp_path, monkeypatch):
        monkeypatch.setattr(generation, "generate", failing(RuntimeError("a mistake")))
        with pytest.raises(RuntimeError, match="a mistake"):
            evaluate(model, data, tmp_path / "out")

    def test_the_size_it_begins_with(self, model, monkeypatch):
        model = loading.load_model(model)
        each = eval.generation.bytes_a_question(model, 1, 6)

        def with_free(count):
            memory = type("Memory", (), {"available": 2 * count * each})
            monkeypatch.setattr(eval.generation.psutil, "virtual_memory", lambda: memory)
            return eval.generation.starting_batch_size(model, 1, 6)

        assert [with_free(count) for count in (0, 1, 7, 8, 15, 16, 1000)] == [1, 1, 4, 8, 8, 16, 16]
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert with_free(16) == 8
        assert eval.generation.bytes_a_question(model, 8, 256) > 1.5 * eval.generation.bytes_a_question(model, 1, 256)

    def test_long_clips_come_first(self, data):
        questions = read_questions(data).records
        grid = batches(prompts_of(questions), 5, seconds_of(one.audio_path for one in questions))
        assert [len(batch) for batch in grid] == [5, 5, 2]
        sizes = [one.question.audio_path.stat().st_size for batch in grid for one in batch]  # all of one format
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 1

    @pytest.mark.parametrize(("batches", "processes"), [(0, 2), (1, 2), (5, 2), (6, 3), (7, 4)])
    def test_processes_share_all_batches_equally_often_in_step(self, batches, processes):
        free, in_step = (
            [share_of(range(batches), rank, processes, in_step) for rank in range(processes)]
            for in_step in (False, True)
        )
        assert sorted(chain(*free)) == sorted({*chain(*in_step)}) == list(range(batches))
        assert {len(share) for share in in_step} == {max(map(len, free))}


class TestAdapter:
    @pytest.fixture
    def adapter(self, checkpoint, tmp_path):
        model, processor = loading.load(checkpoint)
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        torch.manual_seed(0)
        with torch.no_grad():
            for name, weights in adapted.named_parameters():
                if "lora_B" in name:
                    weights.normal_(std=0.5)
        adapted.save_pretrained(tmp_path / "adapter")
        processor.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    def test_on_its_base_and_on_top_of_a_base_that_has_moved(self, checkpoint, adapter, data, answers, tmp_path):
        on_its_base = answers(adapter, data)
        moved = checkpoint.rename(tmp_path / "moved")
        merged = loading.load_model(adapter, base=moved).merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        loading.load_processor(moved).save_pretrained(tmp_path / "merged")
        adapted = answers(moved, data, "--adapter", adapter)
        assert answers(tmp_path / "merged", data) == adapted == on_its_base != answers(moved, data)

    def test_its_folder_gets_the_results_and_it_is_no_base_of_another(
        self, checkpoint, adapter, data, tmp_path, capsys
    ):
        given = ["--ckpt", str(checkpoint), "--data", str(data), "--adapter", str(adapter), "--limit", "1"]
        assert main([*given, "--device", "cpu", "--max-new-tokens", "2"]) == 0
        assert (adapter / "eval" / "manifest" / "scores.json").is_file()
        assert evaluate(adapter, data, tmp_path / "out", "--adapter", adapter) == 2
        assert "an adapter itself" in capsys.readouterr().err


class TestWithoutAudio:
    @pytest.mark.parametrize("without_first", [False, True])
    def test_the_report_of_the_run_with_audio_shows_it_whichever_came_first(self, model, data, tmp_path, without_first):
        calls = [(tmp_path / "mini", ()), (tmp_path / "mini-no-audio", ("--no-audio",))]
        for out, more in reversed(calls) if without_first else calls:
            assert evaluate(model, data, out, *more) == 0
        scores, without = (read_json(out / "scores.json") for out, _ in calls)
        assert scores["blind"]["accuracy"] == without["total"]["accuracy"]
        assert "blind" not in without
        report = (tmp_path / "mini" / "report.md").read_bytes()
        assert evaluate(model, data, tmp_path / "mini") == 0  # whichever of the two wrote it
        assert (tmp_path / "mini" / "report.md").read_bytes() == report
