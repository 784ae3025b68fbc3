"""How a cluster is shared out: everyone finds a place, and who finds none keeps no other waiting."""

from __future__ import annotations

import random

import pytest
import ray

from infusion_cluster import pool as module
from infusion_cluster.pool import Pool
from infusion_cluster.shares import Share, share_of
from infusion_core.errors import InfusionError


def placed(machines, share):
    """How many find a place, put down one after the other."""
    found = 0
    for cpus, gpus in machines:
        each = [1.0] * gpus
        while cpus >= share.cpus and found < share.count:
            if share.gpus:
                room = next((i for i, left in enumerate(each) if left >= share.gpus - 1e-6), None)
                if room is None:
                    break
                each[room] -= share.gpus
            cpus -= share.cpus
            found += 1
    return found


@pytest.mark.parametrize(
    ("machines", "wanted", "share"),
    [
        ([(2, 0)], 0, Share(1, 2)),
        ([(9, 0)], 2, Share(2, 4)),
        ([(2, 0)], 3, Share(2, 1)),
        ([(2, 0)] * 3, 0, Share(1, 2)),
        ([(8, 0), (2, 0)], 0, Share(2, 4)),
        ([(16, 4)], 0, Share(4, 1, 1.0)),
        ([(16, 2)], 3, Share(3, 1, 0.5)),
        ([(16, 2)], 1, Share(1, 1, 1.0)),
        ([(1, 1), (64, 0)], 5, Share(1, 1, 1.0)),
    ],
)
def test_what_each_holds(machines, wanted, share):
    assert share_of(machines, wanted) == share


def test_all_find_a_place_and_none_could_hold_more():
    draw = random.Random(0)
    for _ in range(500):
        gpus = draw.random() < 0.5
        machines = [(draw.randint(1, 9), draw.randint(0, 3) * gpus) for _ in range(draw.randint(1, 4))]
        share = share_of(machines, draw.randint(0, 12))
        assert placed(machines, share) == share.count, (machines, share)
        larger = Share(share.count, share.cpus + 1) if not share.gpus else None
        assert larger is None or placed(machines, larger) < share.count, (machines, share)


@pytest.fixture(scope="module")
def started():
    """Ray with two processors; makes a pool of workers that each hold so many."""

    class Tiny:
        def resolution(self):
            return 128

        def who(self):
            return "me"

        def steps(self):
            return 0

        def train(self, pack):
            return [name.upper() for name in pack]

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield lambda share: Pool([ray.remote(num_cpus=share.cpus)(Tiny).remote() for _ in range(share.count)], share)
    ray.shutdown()


def test_who_finds_no_place_keeps_nobody_waiting(started, monkeypatch):
    """Two workers of two processors each, on two; and one of three."""
    pool, begun = started(Share(2, 2)), []
    assert pool.resolution == 128
    packs = iter([["a"], ["b", "c"], ["d"]])
    done = list(pool.run(packs, lambda pack, who: begun.append((pack, who)), lambda _: None))
    assert sorted(done) == [["A"], ["B", "C"], ["D"]]
    assert [who for _, who in begun] == ["me"] * 3
    monkeypatch.setattr(module, "START_WITHIN", 1.0)
    with pytest.raises(InfusionError, match=r"no worker has started in 1 s: each needs 3 processors and 0 GPUs, free"):
        _ = started(Share(1, 3)).resolution
