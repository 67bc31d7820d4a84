"""What a reproduction does: `configs/reproduce_r1_aqa.yaml`, checked; a rehearsal has other values in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.reproduction.reading import KINDS
from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.data.prompts import PROMPT_STYLES
from r1_aqa_repro.data.yaml_file import as_argument, problems_of, read_yaml

ROOT = Path(__file__).resolve().parents[2]
REHEARSAL = "rehearsal"
ROLES = ("main", "thinking", "beta", "coin")
_PUBLISHED = ("total", "sound", "music", "speech")
_OPTIONAL: dict[str, Any] = {"role": None, "published": None, "keys": {}, "processes": None}  # of an arm


@dataclass(frozen=True)
class Embedded:
    """What a rehearsal makes in place of data and model: `seed` of both; how many questions to train on, and to be
    asked; and the SFT of so many steps at most that makes a base model of random weights, on questions of its own."""

    seed: int
    num_train: int
    num_test: int
    num_warm: int
    warm_config: str
    warm_steps: int

    @property
    def warm_file(self) -> Path:
        return ROOT / "configs" / f"{self.warm_config}.yaml"


@dataclass(frozen=True)
class _Arm:
    """What the file says of an arm, see `Arm`."""

    label: str
    config: str
    role: str | None
    published: dict[str, Any] | None
    keys: dict[str, Any]
    processes: int | None


@dataclass(frozen=True)
class Arm(_Arm):
    """One way to train, of which every seed is a run.

    Attributes:
        label: in the table.
        config: name of a file in configs/, without .yaml.
        role: what the findings take it for (`ROLES`), if anything.
        published: accuracy in percent by task and in total, if the paper has it.
        keys: in place of the config's.
        processes: of a training.
        name: of its folder.
        kind: of training, one of `KINDS`.
        prompt_style: of the training, and of its evaluations.
    """

    processes: int
    name: str
    kind: str
    prompt_style: str

    @property
    def file(self) -> Path:
        return ROOT / "configs" / f"{self.config}.yaml"

    def overrides(self) -> list[str]:
        """The keys as the arguments of a training command."""
        given: list[str] = []
        for key, value in self.keys.items():
            given += [f"--{key}", *(map(as_argument, value) if isinstance(value, list) else [as_argument(value)])]
        return given

    def settings(self) -> dict[str, Any]:
        """Every key of the training with its value: the config's, and those in their place."""
        return read_yaml(self.file) | self.keys


@dataclass(frozen=True)
class _Keys:
    """Those of the file; configs/reproduce_r1_aqa.yaml explains them."""

    name: str
    output_dir: str
    model: str
    embedded: dict[str, Any] | None
    seeds: list[int]
    processes: int
    gpu_memory: float
    dtype: str
    price_per_gpu_hour: dict[str, Any] | None
    slurm: dict[str, Any]
    prepare: dict[str, Any]
    train: str
    held_out: int
    held_out_seed: int
    test: str
    max_new_tokens: int
    decoding: str
    batch_size: Any
    orders: int
    suite: str | None
    base: dict[str, Any]
    keys: dict[str, Any]
    arms: dict[str, Any]


@dataclass(frozen=True)
class _Base:
    label: str
    prompt_style: str
    published: dict[str, Any] | None


@dataclass(frozen=True)
class Study:
    """A reproduction; `keys` are those of its file."""

    file: Path
    rehearsed: bool
    keys: _Keys
    embedded: Embedded | None
    arms: dict[str, Arm]

    @property
    def folder(self) -> Path:
        return Path(self.keys.output_dir)

    @property
    def made(self) -> Path:
        """Where the embedded questions are."""
        return (self.folder / "embedded").absolute()

    @property
    def train_file(self) -> Path:
        """The questions to train on, before some are held out."""
        return self._file("train.jsonl", self.keys.train)

    @property
    def test_file(self) -> Path:
        """The test set."""
        return self._file("held_out/mmau_format.json", self.keys.test)

    @property
    def model(self) -> str:
        """The base model: a folder, or a hub id."""
        return self.keys.model if self.embedded is None else str(self.folder / "model" / "warm_start" / "final")

    def _file(self, made: str, given: str) -> Path:
        return self.made / made if self.embedded else Path(given).absolute()

    def of(self, arm: str, seed: int) -> Path:
        """The folder of a seed of an arm."""
        return self.folder / "arms" / arm / f"seed-{seed}"

    def main(self) -> Arm:
        """The arm that the paper is about."""
        return next(arm for arm in self.arms.values() if arm.role == "main")

    def description(self) -> dict[str, Any]:
        """What the report is told of it; the content of study.json."""
        return {
            "name": self.keys.name,
            "rehearsed": self.rehearsed,
            "seeds": self.keys.seeds,
            "base": self.keys.base,
            "arms": {
                arm.name: {
                    key: getattr(arm, key) for key in ("label", "kind", "prompt_style", "published", "role", "config")
                }
                for arm in self.arms.values()
            },
            "price_per_gpu_hour": self.keys.price_per_gpu_hour,
        }


def read_study(file: Path, rehearse: bool) -> Study:
    """The reproduction that a YAML file describes.

    Raises:
        Refused: the file, or the config of an arm, cannot be read; or with every key that is absent, unknown or of
            another kind.
    """
    content = read_yaml(file)
    rehearsal = content.pop(REHEARSAL, None)
    if rehearse:
        if not isinstance(rehearsal, dict):
            raise Refused.because(f"{file}: {REHEARSAL}", "there are no values to rehearse with", "Give them.")
        content = merged(content, rehearsal)
    problems = problems_of(_Keys, content, str(file))
    if problems:
        raise Refused(problems)
    keys = _Keys(**content)
    embedded = None
    if keys.embedded is not None:
        problems += problems_of(Embedded, keys.embedded, f"{file}: embedded")
        embedded = None if problems else Embedded(**keys.embedded)
    problems += problems_of(_Base, keys.base, f"{file}: base")
    if embedded is not None and keys.prepare:
        problems.append(Problem(f"{file}: prepare", "the embedded questions are made, not prepared", "Give {}."))
    for command, options in keys.prepare.items():
        if command not in ("avqa", "mmau", "mmar", "mmsu", "mmau_pro", "convert") or "--out " not in f"{options}":
            what = f"{command} is no command of data_prep with an --out"
            problems.append(Problem(f"{file}: prepare", what, "Give `command: --option value ... --out DIR`."))
    problems += _further_problems(keys, str(file))
    arms: dict[str, Arm] = {}
    for name, given in keys.arms.items():
        with collecting(problems):
            arms[name] = _arm(name, given, keys, f"{file}: arms.{name}")
    main = [arm.name for arm in arms.values() if arm.role == "main"]
    if len(main) != 1 and len(arms) == len(keys.arms):
        what = f"{len(main)} of them have the role main"
        problems.append(Problem(f"{file}: arms", what, "Give it to the one that the paper is about."))
    if problems:
        raise Refused(problems)
    return Study(file, rehearse, keys, embedded, arms)


def merged(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `others` in their place: mapping by mapping, but for an empty one, which takes the place of all."""
    found = dict(values)
    for key, value in others.items():
        below = found.get(key)
        found[key] = merged(below, value) if isinstance(value, dict) and value and isinstance(below, dict) else value
    return found


def _arm(name: str, given: Any, keys: _Keys, where: str) -> Arm:
    given = _OPTIONAL | given if isinstance(given, dict) else given
    if problems := problems_of(_Arm, given, where):
        raise Refused(problems)
    content = read_yaml(ROOT / "configs" / f"{given['config']}.yaml")
    kind = "grpo" if "num_generations" in content else "sft"
    style = content.get("prompt_style")
    if style not in PROMPT_STYLES:
        raise Refused.because(where, f"its config has the prompt_style {style!r}", f"Use {', '.join(PROMPT_STYLES)}.")
    if given["role"] not in (None, *ROLES):
        raise Refused.because(where, f"role is {given['role']!r}", f"Choose among {', '.join(ROLES)}, or leave it out.")
    _check_published(given["published"], where)
    own = (keys.keys.get(kind) or {}) | given["keys"]
    more = {"config": given["config"], "keys": own, "processes": given["processes"] or keys.processes}
    return Arm(**given | more, name=name, kind=kind, prompt_style=style)


def _check_published(published: Any, where: str) -> None:
    if published is not None and set(published) != set(_PUBLISHED):
        raise Refused.because(f"{where}: published", f"{published!r:.80}", f"Give {', '.join(_PUBLISHED)}.")


def _further_problems(keys: _Keys, file: str) -> list[Problem]:
    problems = []
    seeds = keys.seeds
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        problems.append(Problem(f"{file}: seeds", f"{seeds!r:.80}", "Give a list of whole numbers from 0."))
    elif len(set(seeds)) < len(seeds):
        problems.append(Problem(f"{file}: seeds", f"{seeds!r:.80}: one stands twice", "Name each once."))
    if (style := keys.base.get("prompt_style")) not in PROMPT_STYLES:
        problems.append(Problem(f"{file}: base.prompt_style", f"{style!r:.80}", f"Use {', '.join(PROMPT_STYLES)}."))
    if set(keys.keys) != set(KINDS):
        problems.append(Problem(f"{file}: keys", f"{list(keys.keys)}", f"Give {' and '.join(KINDS)}."))
    price = keys.price_per_gpu_hour
    if price is not None and set(price) != {"value", "currency", "source"}:
        problems.append(Problem(f"{file}: price_per_gpu_hour", f"{price!r:.80}", "Give value, currency and source."))
    with collecting(problems):
        _check_published(keys.base.get("published"), f"{file}: base")
    return problems
