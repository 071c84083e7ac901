import sys
import types

import pytest
import torch

from tests.kernels.compare import LIBRARIES


@pytest.fixture(autouse=True, scope="package")
def _two_threads_again() -> None:
    """Engines that ran before set their own number; kernels shall be shared out to more than one."""
    torch.set_num_threads(2)
    for library in LIBRARIES.values():
        library.set_threads(2)


@pytest.fixture
def fake_flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A flash_attn package in plain torch; returns the calls it saw."""
    calls: list[dict] = []

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
    ):
        calls.append(dict(locals()))
        out = torch.empty_like(q)
        for s in range(len(cu_seqlens_q) - 1):
            rows = slice(*cu_seqlens_q[s : s + 2].tolist())
            keys = slice(*cu_seqlens_k[s : s + 2].tolist())
            group = q.shape[1] // k.shape[1]
            k_s, v_s = (x[keys].float().repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
            q_s = q[rows].float().transpose(0, 1)
            visible = torch.ones(q_s.shape[1], k_s.shape[1], dtype=torch.bool)
            own = k_s.shape[1] - q_s.shape[1]  # of the first query: aligned to the bottom right corner
            if causal:
                visible = visible.tril(own)
            if window_size[0] >= 0:
                visible = visible.triu(own - window_size[0])
            scores = (q_s @ k_s.transpose(1, 2) * softmax_scale).masked_fill(~visible, float("-inf"))
            out[rows] = (scores.softmax(-1) @ v_s).transpose(0, 1).to(q.dtype)
        return out

    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return calls
