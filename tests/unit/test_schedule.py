"""Learning rate, seeds and micro-batches are functions of the step or the sample alone."""

from __future__ import annotations

import pytest

from ciuic_dist.config import ConfigError, TrainConfig
from ciuic_dist.loop.schedule import lr_factor, micro_batch_of, sample_seed


def test_the_learning_rate_warms_up_linearly_and_falls_on_a_cosine() -> None:
    train = TrainConfig(steps=9, warmup_steps=4, final_lr_fraction=0.2)
    factors = [lr_factor(step, train) for step in range(9)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([1.0, 0.8828427, 0.6, 0.3171573, 0.2])


def test_without_warm_up_it_starts_at_its_highest() -> None:
    assert lr_factor(0, TrainConfig(steps=1, warmup_steps=0)) == 1.0


def test_after_the_last_step_it_stays_at_its_lowest() -> None:
    assert lr_factor(100, TrainConfig(steps=9, final_lr_fraction=0.2)) == pytest.approx(0.2)


def test_no_two_samples_nor_runs_share_a_seed() -> None:
    seeds = [sample_seed(seed, sample) for seed in range(20) for sample in range(200)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds)  # all that torch's CPU generator sees
    assert sample_seed(1, 2) == seeds[202]


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world", "expected"), [(12, None, 1, 12), (12, None, 3, 4), (12, 2, 3, 2)]
)
def test_the_micro_batch_is_the_ranks_share_unless_given(
    global_batch: int, micro_batch: int | None, world: int, expected: int
) -> None:
    assert micro_batch_of(TrainConfig(global_batch=global_batch, micro_batch=micro_batch), world) == expected


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world", "good"),
    [
        (11, None, 2, "train.global_batch to 10 or 12"),
        (2, None, 3, "train.global_batch to 3"),
        (12, 4, 2, "1, 2, 3, 6"),
    ],
)
def test_what_does_not_divide_is_refused_with_good_values(
    global_batch: int, micro_batch: int | None, world: int, good: str
) -> None:
    with pytest.raises(ConfigError, match=good):
        micro_batch_of(TrainConfig(global_batch=global_batch, micro_batch=micro_batch), world)
