from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig


def apply_rope_parameters(config: PreTrainedConfig, rope_parameters: Mapping[str, Any]) -> None:
    raise NotImplementedError
