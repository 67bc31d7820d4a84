"""What a study's trainings took, as far as their records tell: what they do not tell is never a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eval.reproduction.reading import COST, RUN, TRAININGS, Bundle, number, place_of

_SUMMED = ("seconds", "gpu_hours", "energy_kwh", "price")


def cost(bundle: Bundle) -> dict[str, Any]:
    """By arm and seed `seconds`, `gpus`, `gpu_hours`, `mfu` (0-1), `energy_kwh`, `price`; the `total` of what adds up.

    Seconds are those of run.json, interruptions included, and each process of a machine with GPUs has one of them. MFU
    and energy are as whoever measured them wrote them to cost.json. A total is read only if all of its parts are.

    Raises:
        Refused: a record is damaged.
    """
    price = bundle.study.price
    found: dict[str, dict[str, Any]] = {}
    for arm in bundle.study.arms:
        for seed in bundle.study.seeds:
            place = (TRAININGS, place_of(arm.name, seed))
            run, measured = bundle.record(*place, RUN), bundle.record(*place, COST) or {}
            if run is not None:
                found.setdefault(arm.name, {})[seed] = _of_training(run, measured, price)
    if not found:
        return {"status": "not run"}
    parts = [one for seeds in found.values() for one in seeds.values()]
    total = {key: _or_not_read(_sum([one[key] for one in parts])) for key in _SUMMED}
    given = None if price is None else dict(price)
    return {"status": bundle.study.status, "price_per_gpu_hour": given, "arms": found, "total": total}


def _of_training(
    run: Mapping[str, Any], measured: Mapping[str, Any], price: Mapping[str, Any] | None
) -> dict[str, Any]:
    stages, hardware = run.get("seconds"), run.get("hardware")
    seconds = _sum(list(stages.values())) if isinstance(stages, dict) and stages else None
    gpus = hardware.get("gpus") if isinstance(hardware, dict) else None
    count = number(run.get("processes")) if gpus else None
    hours = None if seconds is None or count is None else seconds * count / 3600
    rate = None if price is None else number(price.get("value"))
    values = {
        "seconds": seconds,
        "gpus": count,
        "gpu_hours": hours,
        "mfu": number(measured.get("mfu")),
        "energy_kwh": number(measured.get("energy_kwh")),
        "price": None if hours is None or rate is None else hours * rate,
    }
    return {key: _or_not_read(value) for key, value in values.items()}


def _sum(values: list[Any]) -> float | None:
    """None if one of them is no number."""
    numbers = [value for value in values if number(value) is not None]
    return math.fsum(numbers) if len(numbers) == len(values) else None


def _or_not_read(value: float | None) -> Any:
    return {"status": "not read"} if value is None else value
