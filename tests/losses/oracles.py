"""Inputs without random numbers, and what the losses make of them, computed with NumPy.

The values were made by other code than ours, straight from the formulas, in float64. Those of
`STORED` also stand in the shared file `oracles/oracles.json`, against which a test holds them.
"""

import torch
from torch import Tensor

STORED = {
    "logit": {
        "fkl": 1.008474841689877,
        "fce": 2.6207591747389807,
        "rkl": 0.9036977287309759,
        "gjsd_0.1": 0.08034104734770589,
        "gjsd_0.5": 0.19312205632936053,
        "tvd": 0.47083061080920013,
        "srkl_0.1": 0.6365945941345144,
        "fkl_T2_T2": 1.1586998001072828,
        "fkl_T4_T2": 1.2092393278220064,
        "ce": 2.7532689528841616,
        "topk3_trunc": 0.9557626980361071,
        "topk3_renorm": 0.3397041571579513,
        "topk3_tail": 0.8386522858990528,
        "topk3_min_token_trunc": -0.13256757064425087,
        "uld_T1": 0.4131179178847118,
    },
    "feature": {
        "hid_mse": 1.0324797938167822,
        "cos": 1.072335852723566,
        "cka_linear": 0.07720192954923843,
        "mmd": 0.32025462021174206,
    },
    "relation": {
        "rkd_d": 0.1027778199212737,
        "rkd_a": 0.1450887405021178,
        "rkd_25_50": 9.823882523137733,
        "sp": 0.3950821047139011,
    },
}
GJSD_09, SKEW_01 = 0.0749810296, 0.6619494603
MINILM_2_HEADS, PKT = 0.2430379765, 0.2955439917  # 10 digits are known

LABELS = torch.tensor([[-100, 1, 4, 6], [2, -100, 0, -100]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()


def steps(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64)


def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Student (5, 7), teacher (5, 7) and labels (5,) at the positions that carry loss."""
    index = steps(56).reshape(2, 4, 7)
    kept = LABELS != -100
    student, teacher = 2.0 * torch.sin(0.7 * index + 0.3), 2.5 * torch.cos(0.4 * index - 0.2)
    return student[kept], teacher[kept], LABELS[kept]


def states() -> tuple[Tensor, Tensor]:
    """Student and teacher, both (2, 4, 6)."""
    index = steps(48).reshape(2, 4, 6)
    return torch.sin(0.9 * index + 0.1), torch.cos(0.5 * index)


def embeddings() -> tuple[Tensor, Tensor]:
    """Student (5, 4) and teacher (5, 3)."""
    return torch.sin(1.3 * steps(20)).reshape(5, 4), torch.cos(0.8 * steps(15)).reshape(5, 3)
