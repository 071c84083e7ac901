import logging

import pytest
import torch

from kernels import backends, native, resolve
from kernels.latent_attention.native import NativeLatentAttention, NativeSparseLatentAttention
from kernels.ops import Ops
from kernels.paged_attention.native import NativeAttention
from kernels.paged_attention.reference import ReferenceAttention
from kernels.paged_attention.torch_ops import TorchAttention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NATIVE = ("linear", "head_linear", "rms_norm", "rotary", "silu_mul", "rotate_and_store", "store_latents",
          "causal_attention", "routing", "embedding", "take_rows", "draw")  # fmt: skip


@pytest.fixture
def native_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a compiler; nothing is called."""
    monkeypatch.setattr(native, "ISA", "avx2")


@pytest.fixture
def native_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ISA", None)


def versions(kernels: Ops, *names: str) -> set[str]:
    """Which versions of these operations were taken: their modules' names."""
    return {getattr(kernels, name).__module__.rpartition(".")[2] for name in names}


@pytest.mark.parametrize(
    ("choice", "dtype", "attention"),
    [("reference", torch.float32, ReferenceAttention), ("torch", torch.bfloat16, TorchAttention)],
)
def test_a_choice_by_name_is_taken_for_every_operation(choice, dtype, attention):
    kernels = resolve.resolve(choice, CPU, dtype)
    assert kernels.name == choice
    assert isinstance(kernels.paged_attention, attention)
    assert versions(kernels, "linear", "linear_int8", "rms_norm", "rotary", "routing", "store_kv", "draw") == {
        {"torch": "torch_ops"}.get(choice, choice)
    }


@pytest.mark.parametrize("choice", ["auto", "native"])
@pytest.mark.usefixtures("native_is_built")
def test_a_cpu_with_the_library_takes_native_kernels(choice):
    kernels = resolve.resolve(choice, CPU, torch.float32)
    assert kernels.name == "native"
    assert isinstance(kernels.paged_attention, NativeAttention)
    assert isinstance(kernels.latent_attention, NativeLatentAttention)
    assert isinstance(kernels.sparse_latent_attention, NativeSparseLatentAttention)
    assert all(name in vars(backends.NativeOps) for name in NATIVE)


@pytest.mark.usefixtures("native_is_not_built")
def test_auto_on_a_cpu_without_the_library_falls_back_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert resolve.resolve("auto", CPU, torch.bfloat16).name == "torch"
    assert "apt install g++" in caplog.text


@pytest.mark.usefixtures("native_is_not_built")
def test_native_by_name_raises_without_the_library():
    with pytest.raises(resolve.KernelUnavailableError, match=r"--kernels native cannot run here: .*not built"):
        resolve.resolve("native", CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.float16, "bfloat16 and float32, and the dtype is torch.float16"),
        (CUDA, torch.bfloat16, "for a CPU, and the device is cuda"),
    ],
)
@pytest.mark.usefixtures("native_is_built")
def test_native_by_name_raises_where_it_cannot_run(device, dtype, reason):
    with pytest.raises(resolve.KernelUnavailableError, match=reason):
        resolve.resolve("native", device, dtype)


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.bfloat16, "needs a GPU, and the device is cpu"),
        (CUDA, torch.float32, "float16 or bfloat16, and the dtype is torch.float32"),
        (CUDA, torch.bfloat16, r"not installed \(pip install"),
    ],
)
def test_flash_attn_by_name_raises_where_it_cannot_run(monkeypatch, device, dtype, reason):
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(resolve.KernelUnavailableError, match=reason):
        resolve.resolve("flash-attn", device, dtype)


def test_auto_on_a_gpu_without_flash_attn_falls_back_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        kernels = resolve.resolve("auto", CUDA, torch.bfloat16)
    assert kernels.name == "torch"
    assert isinstance(kernels.paged_attention, TorchAttention)
    assert "flash-attn package is not installed" in caplog.text
