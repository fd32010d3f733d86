"""Packs that the device's memory does not hold are halved; what ends a pack, and what ends the rest too."""

import pytest
import torch

from melora_bench.training.waves import train_in_waves


class Device:
    """Holds `room` seeds side by side; remembers what was asked of it."""

    def __init__(self, room: int, broken: dict[int, Exception] | None = None) -> None:
        self.room, self.broken = room, broken or {}
        self.halved: list[tuple] = []
        self.errors: list[tuple] = []

    def train(self, seeds: list[int]) -> list[int]:
        if len(seeds) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        for seed in seeds:
            if seed in self.broken:
                raise self.broken[seed]
        return seeds

    def run(self, packs: list[list[int]], may_halve: bool = True) -> list[int]:
        return train_in_waves(
            packs,
            self.train,
            may_halve=lambda seeds: may_halve,
            on_halved=lambda seeds, left: self.halved.append((seeds, left)),
            on_error=lambda error, seeds: self.errors.append((type(error), seeds)),
        )


def test_halves_until_they_fit_in_order():
    device = Device(2)
    assert device.run([[0, 1, 2, 3, 4], [5]]) == [0, 1, 2, 3, 4, 5]
    assert device.halved == [
        ([0, 1, 2, 3, 4], [[0, 1, 2], [3, 4], [5]]),
        ([0, 1, 2], [[0, 1], [2], [3, 4], [5]]),
    ]
    assert device.errors == []


@pytest.mark.parametrize(("room", "packs", "may_halve"), [(0, [[0], [1]], True), (1, [[0, 1], [2]], False)])
def test_a_pack_that_cannot_be_halved_ends_the_rest(room, packs, may_halve):
    device = Device(room)
    assert device.run(packs, may_halve) == []
    assert device.halved == [] and device.errors == [(torch.OutOfMemoryError, packs[0])]


def test_a_value_error_ends_its_own_pack_alone():
    device = Device(2, {1: ValueError("its loss was not finite")})
    assert device.run([[0, 1], [2, 3]]) == [2, 3]
    assert device.errors == [(ValueError, [0, 1])]


def test_any_other_error_ends_the_rest_and_keeps_what_was_trained():
    device = Device(2, {2: OSError("no space left")})
    assert device.run([[0, 1], [2], [3]]) == [0, 1]
    assert device.errors == [(OSError, [2])]
