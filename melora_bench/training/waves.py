"""Seeds that the device's memory does not hold side by side are trained in waves."""

from collections.abc import Callable

import torch

Pack = list[int]  # the seeds that are trained side by side


def train_in_waves(
    packs: list[Pack],
    train: Callable[[Pack], list],
    *,
    may_halve: Callable[[Pack], bool],
    on_halved: Callable[[Pack, list[Pack]], None],
    on_error: Callable[[Exception, Pack], None],
) -> list:
    """Train one pack after another; returns what `train` returned for all of them, joined.

    A pack that the device's memory does not hold is halved until it fits, and `on_halved(pack, packs still to train)`
    is told. `may_halve`, asked before a pack is trained, says whether nothing is lost by it. A ValueError ends its own
    pack alone, as the seeds of another are none the worse for it; any other error ends the rest too. `on_error` is told
    of each.
    """
    results: list = []
    while packs:
        seeds, *packs = packs
        halvable = len(seeds) > 1 and may_halve(seeds)
        try:
            results += train(seeds)
        except ValueError as error:
            on_error(error, seeds)
        except torch.OutOfMemoryError as error:
            if not halvable:
                on_error(error, seeds)
                break
            half = -(-len(seeds) // 2)
            packs = [seeds[:half], seeds[half:], *packs]
            on_halved(seeds, packs)
        except Exception as error:
            on_error(error, seeds)
            break
    return results
