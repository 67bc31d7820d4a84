"""Texts stay texts: whoever writes `<|im_end|>` into a question ends no turn, and `<|AUDIO|>` is no second clip.

By itself a tokenizer takes what spells one of its added tokens for that token, wherever it stands. `keep_texts` makes
a tokenizer or processor tell those of the chat template from those that a text spells: before the template is applied,
each spelling in a text gets a cut inside, which the tokenizer leaves out once it has looked for added tokens. All that
renders a conversation with it is covered, TRL's trainers too; texts that spell no such token are what they were.

`sanitize_control_tokens` of transformers 5.23 does this for whoever renders and tokenises in one call. TRL does not
ask for it, and renders first where a reward model scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from tokenizers.pre_tokenizers import Sequence, Split

from r1_aqa_repro.common.console import say

_CUT = "\ufdd0\ufdd1"  # noncharacters, which Unicode keeps free for such uses
_NAMED = 20  # records that a warning names


def keep_texts(processing_class: Any) -> Any:
    """Make a tokenizer or a processor, which is returned, keep the texts of all conversations apart from its tokens."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    inner = tokenizer.backend_tokenizer
    inner.pre_tokenizer = Sequence([Split(_CUT, "removed"), inner.pre_tokenizer])  # after it has found added tokens
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
    # a text that has a cut of its own is cut inside it, and keeps it
    either = "|".join(map(re.escape, sorted(tokens | {_CUT}, key=len, reverse=True)))
    tokenizer.spelling = re.compile(either)
    tokenizer.spelling_starts = re.compile(f"(?s)(?=(?:{either}))(.)")
    for each in (processing_class, tokenizer):
        each.apply_chat_template = partial(_rendered, each, tokenizer)
    return processing_class


def _rendered(processing_class: Any, tokenizer: Any, conversation: Any, *args: Any, **options: Any) -> Any:
    """The class's own `apply_chat_template`, of texts that have been cut."""
    own = type(processing_class).apply_chat_template
    return own(processing_class, plain(tokenizer, conversation), *args, **options)


def plain(tokenizer: Any, value: Any) -> Any:
    """A text, or all texts in lists and dictionaries, cut: what `tokenizer` takes for nothing but text."""
    if isinstance(value, str):
        # overlapping spellings too; the search, which is fast, spares nearly every text the rest
        return tokenizer.spelling_starts.sub(rf"\1{_CUT}", value) if tokenizer.spelling.search(value) else value
    if isinstance(value, dict):
        return {key: plain(tokenizer, item) for key, item in value.items()}
    return [plain(tokenizer, item) for item in value] if isinstance(value, list | tuple) else value


def spelled(tokenizer: Any, value: Any) -> list[str]:
    """The added tokens that a text, or the texts in lists and dictionaries, spell, each once."""
    found = (match for text in _texts(value) for match in tokenizer.spelling.findall(text))
    return [token for token in dict.fromkeys(found) if token != _CUT]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def say_spelled(tokenizer: Any, where: str, records: Iterable[tuple[str, Any]]) -> None:
    """Name the records, each an id and its texts, that spell an added token: it may be a mistake, or an attempt."""
    found = [f"{name} ({' '.join(tokens)})" for name, texts in records if (tokens := spelled(tokenizer, texts))]
    if found:
        more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
        what = "spells a special token" if len(found) == 1 else "spell special tokens"
        count = f"{len(found):,} record{'s' * (len(found) > 1)}"
        say(f"warning: {where}: {count} {what}, read as text: {', '.join(found[:_NAMED])}{more}")
