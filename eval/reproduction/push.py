"""Upload the chosen model of a study with its card to the Hugging Face hub. Nothing else of the project uploads one.

    python -m eval.reproduction.push runs/reproduce_r1_aqa --repo YOUR_NAME/r1-aqa

The model is the one that OUT/card/README.md is of: of the main arm the seed whose chosen checkpoint is best on held-out
questions. What loads it goes up (weights, configuration, processor), and the card as README.md; no optimizer, no data,
no log. The repository is made if it is not there, and is private unless `--public` is given. huggingface_hub takes your
token from HF_TOKEN or from `hf auth login`, the server from HF_ENDPOINT.

Exit codes: 0 done; 1 the hub refused or cannot be reached; 2 refused before anything was sent; 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path

from eval.reproduction.card import CARD_FOLDER, chosen_of, read_figures
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, Refused, command
from r1_aqa_repro.common.files import unreadable
from r1_aqa_repro.run.model_card import CARD


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    given = _parser().parse_args(argv)
    _check_name(given.repo)
    chosen = chosen_of(read_figures(given.out))
    if chosen is None:
        remedy = "Run the study's main arm first."
        raise Refused.because(str(given.out), "no checkpoint was chosen and tested", remedy)
    files = to_upload(given.out, chosen.folder(given.out))
    for name, path in files.items():
        say(f"{path.stat().st_size / 1e6:10,.1f} MB  {name}")
    say(f"sending {len(files)} files to {given.repo}")
    address = upload(files, given.repo, given.public, f"{chosen.arm}, seed {chosen.seed}, {chosen.checkpoint}")
    say(f"they are at {address}")
    return EXIT_DONE


def to_upload(out: Path, model: Path) -> dict[str, Path]:
    """The files of a study's model, in the folder `model`, and of its card, by their names in the repository.

    Raises:
        Refused: the study has no card yet, or the checkpoint no weights.
    """
    from r1_aqa_repro.model.files import MODEL_FILES  # transformers, which takes seconds

    card = out / CARD_FOLDER / CARD
    if (reason := unreadable(card)) is not None:
        raise Refused.because(str(card), reason, "Let the study write its report first.")
    files = {file.name: file for pattern in MODEL_FILES for file in model.glob(pattern) if file.is_file()}
    if not any(name.endswith((".safetensors", ".bin")) for name in files):
        raise Refused.because(str(model), "the checkpoint holds no weights", "Restore it, or train it again.")
    return {CARD: card, **dict(sorted(files.items()))}


def upload(files: dict[str, Path], repo: str, public: bool, message: str) -> str:
    """Put files into a repository of models by one commit; returns its address.

    Args:
        files: by their names there.
        repo: such as `name/model`; it is made if it is not there.
        public: whether everybody sees a repository that is made.
        message: of the commit.

    Raises:
        Failed: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True)
        api.create_commit(repo, additions, commit_message=message)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # the hub's own, of the network, of a card, of LFS
        raise Failed(f"{repo} was not written: {error}. The same command sends what is missing.") from error
    return str(address)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise Refused.because("--repo", str(error), "Give it as NAME/MODEL.") from None


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.reproduction.push")
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder of a study")
    add("--repo", required=True, metavar="NAME/MODEL", help="repository on the hub")
    add("--public", action="store_true", help="everybody sees a repository that is made (default: it is private)")
    return parser


if __name__ == "__main__":
    main()
