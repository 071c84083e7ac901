"""draw through torch's own operators, on any device. Contract: kernels.draw."""

import torch
import torch.nn.functional as F

_PART = 256  # probabilities in one sum of the first level


def draw(logits_RV: torch.Tensor, temperatures: list[float], uniforms: list[float]) -> list[int]:
    logits_RV = logits_RV.float()
    finite_R = logits_RV.isfinite().all(-1)
    logits_RV = torch.where(finite_R[:, None], logits_RV, 0.0)
    tokens_R = logits_RV.argmax(-1)
    random = [i for i, temperature in enumerate(temperatures) if temperature > 0]
    if random:
        rows = torch.tensor(random, device=logits_RV.device)
        drawn = _draw(logits_RV[rows], [temperatures[i] for i in random], [uniforms[i] for i in random])
        tokens_R[rows] = drawn
    return torch.where(finite_R, tokens_R, -1).tolist()


def _draw(logits_RV: torch.Tensor, temperatures: list[float], uniforms: list[float]) -> torch.Tensor:
    device = logits_RV.device
    tops_R1 = logits_RV.amax(-1, keepdim=True)  # subtracted first, so that a small temperature gives no infinity
    probs_RV = ((logits_RV - tops_R1) / torch.tensor(temperatures, device=device)[:, None]).softmax(-1)
    return inverse_cdf(probs_RV, torch.tensor(uniforms, dtype=torch.float64, device=device)[:, None])


def inverse_cdf(probs_RK: torch.Tensor, u_R1: torch.Tensor) -> torch.Tensor:
    """The index in each row at which the cumulative probability first exceeds u times its total, [R].

    The search has two levels, because a running sum over the whole vocabulary costs more than the softmax.
    """
    num_rows, size = probs_RK.shape
    parts_RPS = F.pad(probs_RK, (0, -size % _PART)).view(num_rows, -1, _PART)
    ends_RP = parts_RPS.sum(-1, dtype=torch.float64).cumsum(-1)
    target_R1 = u_R1 * ends_RP[:, -1:]
    part_R1 = _first_above(ends_RP, target_R1)
    start_R1 = torch.where(part_R1 > 0, ends_RP.gather(1, (part_R1 - 1).clamp(min=0)), 0.0)
    within_RS = parts_RPS[torch.arange(num_rows, device=part_R1.device), part_R1[:, 0]].double().cumsum(-1)
    return (part_R1 * _PART + _first_above(within_RS, target_R1 - start_R1))[:, 0]


def _first_above(cumulative_RX: torch.Tensor, target_R1: torch.Tensor) -> torch.Tensor:
    """The first index at which a row's running sum exceeds its target, [R, 1]; the sum increases there."""
    below_total = cumulative_RX[:, -1:] * (1 - 1e-15)  # rounding can make the target equal to the total
    return torch.searchsorted(cumulative_RX, torch.minimum(target_R1, below_total), right=True)
