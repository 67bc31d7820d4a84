"""The one reader of YAML files: configurations and rubrics."""

from __future__ import annotations

from typing import Any

import yaml

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import open_file


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name a key once; PyYAML itself silently keeps the last of several."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        Refused: the file cannot be read, is no mapping, or names a key twice.
    """
    try:
        with open_file(path) as file:
            content = yaml.load(file.read().decode("utf-8"), _UniqueKeys)  # a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Refused.because(path, f"the config cannot be read ({reason})", "Give a YAML file.") from error
    if not isinstance(content, dict):
        raise Refused.because(path, "the config is no mapping", "Write `key: value` lines.")
    return content
