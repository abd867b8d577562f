"""Learning rates that fall within a phase."""

from __future__ import annotations

import numpy as np
import pytest

from cljax import methods, networks, streams, training
from cljax.types import make_clock

METHOD = methods.feature_extraction(networks.mlp((2, 2, 1), 2, hidden=(3,)), hidden=4)
"""Its phase has a factor of its own for later tasks, 5."""
SCHEDULE = streams.lifelong(2, [4, 8])


def rates(method, *places):
    (phase,) = method.phases
    clocks = [make_clock(round=1, task=1, epoch=epoch, progress=part) for epoch, part in places]
    return [float(phase.learning_rate(clock)) for clock in clocks]


def test_milestones_are_parts_of_each_phase():
    late = training.with_milestones(METHOD, SCHEDULE)
    np.testing.assert_allclose(rates(late, (0, 0), (5, 1), (6, 0)), [5, 5, 0.5], rtol=1e-6)  # 1: an epoch's last step
    within = training.with_milestones(METHOD, SCHEDULE, milestones=(0.8,))  # at 6.4 epochs
    np.testing.assert_allclose(rates(within, (5, 1), (6, 0.3), (6, 0.5), (6, 1)), [5, 5, 0.5, 0.5], rtol=1e-6)
    twice = training.with_milestones(METHOD, SCHEDULE, milestones=(0.75, 0.25), factor=0.5)
    np.testing.assert_allclose(rates(twice, (1, 0.9), (2, 0), (6, 0)), [5, 2.5, 1.25], rtol=1e-6)
    (phase,) = late.phases
    assert float(phase.learning_rate(make_clock(epoch=3))) == pytest.approx(0.1)  # the first visit has four epochs


def test_a_cosine_falls_to_0_within_each_phase():
    falling = training.with_cosine(METHOD, SCHEDULE)
    expected = [5, 5 * (1 + np.cos(np.pi * 2.5 / 8)) / 2, 2.5, 0]
    np.testing.assert_allclose(rates(falling, (0, 0), (2, 0.5), (4, 0), (8, 0)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"milestones": (0.0,)}, {"milestones": (1.0,)}, {"factor": 0.0}])
def test_what_is_no_part_of_a_phase_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        training.with_milestones(METHOD, SCHEDULE, **options)
