"""The key of a configuration that changes a text model; imports no library, for a quick `--help`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from r1_aqa_repro.common.console import key


@dataclass
class RopeArguments:
    """Another rotary embedding than the checkpoint's."""

    rope_parameters: dict[str, Any] | str | None = key(
        None, "Such as {rope_type: yarn, factor: 4.0}: docs/long_context.md."
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the configuration that this is mixed into
        if isinstance(self.rope_parameters, str):  # from the command line
            try:
                self.rope_parameters = json.loads(self.rope_parameters)
            except ValueError as error:
                example = '{"rope_type": "yarn", "factor": 4.0}'
                raise ValueError(f"rope_parameters is no JSON object such as {example} ({error})") from error

    @property
    def rope(self) -> dict[str, Any] | None:
        """`rope_parameters` as parsed."""
        return None if isinstance(self.rope_parameters, str) else self.rope_parameters
