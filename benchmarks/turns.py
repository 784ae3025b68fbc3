"""What every benchmark shares: cases that take turns, the allocator's record, and the table of a sampling benchmark."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

RANK = 8  # of the LoRAs that training is compared with
RATIOS = ("default", "shared", "own", "balanced", "fast", "no_concept")


def device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def take_turns(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall seconds of each case after one warm-up, in turns: a machine that slows down slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(repeats):
        for name, case in cases.items():
            times[name].append(_seconds(case))
    return {name: statistics.median(values) for name, values in times.items()}


def most_allocated(act: Callable[[], object]) -> int:
    """Most bytes that PyTorch's allocator had given out at once while something ran, beyond what was held before."""
    if torch.cuda.is_available():
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        act()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        act()
    now = most = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _seconds(case: Callable[[], object]) -> float:
    started = time.perf_counter()
    case()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def print_blend(title: str, times: Mapping[str, float], steps: int) -> dict[str, float]:
    """The table; gives the ratios of guided sampling to plain sampling."""
    _print_table(title, times, steps)
    return {name: round(value / times["plain"], 4) for name, value in times.items() if name != "plain"}


def print_sampling(title: str, times: Mapping[str, float], steps: int) -> None:
    """The table, and one JSON object of ratios to the plain model on the last line."""
    _print_table(title, times, steps)
    ratios = {name: times[name] / times["plain"] for name in RATIOS}
    ratios["per_added_concept"] = (times["three concepts"] - times["shared"]) / 2 / times["plain"]
    print(json.dumps({name: round(value, 4) for name, value in ratios.items()}))


def _print_table(title: str, times: Mapping[str, float], steps: int) -> None:
    print(title)
    for name, value in times.items():
        print(f"{name:>16}  {value / steps:8.3f} s/step  x{value / times['plain']:.3f}")
