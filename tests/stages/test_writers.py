"""`pinspect add`, the inbox and corrections at once, and killed at any moment: no label is lost."""

import random
import time

import pytest

from pinspect.captures.change import heal
from tests.support.writers import KINDS, faults, make_writers, run_writers

ROUNDS = 8


def test_three_writers_at_once_lose_no_label_on_a_slow_disk(tmp_path):
    root = tmp_path / "project"
    expected = make_writers(root, ROUNDS)
    for writer in run_writers(root, ROUNDS, seconds=0.01):
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    assert faults(root, expected) == []


@pytest.mark.parametrize("seed", range(3))
def test_writers_killed_at_any_moment_leave_nothing_half_done(tmp_path, seed):
    root, chance = tmp_path / "project", random.Random(seed)
    expected = make_writers(root, 4)
    writers = run_writers(root, 4, seconds=0.05)
    while not list((root / "data/captures").glob(".adding-*")):
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.6))
    for writer in writers:
        writer.kill()
        writer.communicate()
    heal(root / "data/captures")  # whoever starts next
    left = faults(root, expected)
    assert not [fault for fault in left if "lost" not in fault and "captures" not in fault]
    for kind, writer in zip(KINDS, run_writers(root, 4, seconds=0), strict=True):
        _, errors = writer.communicate()
        assert writer.returncode == 0, f"{kind}: {errors}"
    assert faults(root, expected) == []
