"""LoRA+: Efficient Low Rank Adaptation of Large Models. Hayou, Ghosh and Yu, ICML 2024. https://arxiv.org/abs/2402.12354"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from melora_bench.methods.attach import require_positive
from melora_bench.methods.lora import LoRA


@dataclass(kw_only=True)
class LoRAPlus(LoRA):
    """LoRA whose B has a higher learning rate than A: `lr` is A's, lr_ratio * lr is B's.

    Parameters: r * (d_in + d_out)
    Rank: r
    Cost: r * (d_in + d_out)
    Departures: A is drawn as public code draws it (`init_a`). The head's rate is lr * head_lr_scale; PEFT gives B's
    rate to the head's biases too.
    Tested against: stock PEFT with create_loraplus_optimizer, 24 clipped AdamW steps.
    """

    lr_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(**{"method.lr_ratio": self.lr_ratio})

    def param_groups(self, adapters: dict[str, nn.Parameter], lr: float) -> list[dict[str, Any]]:
        A, B = ([value for name, value in adapters.items() if name.endswith(f".{part}")] for part in "AB")
        return [{"params": A, "lr": lr}, {"params": B, "lr": lr * self.lr_ratio}]
