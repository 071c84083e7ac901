import logging

import pytest
import torch

from kernels import native, table
from kernels.latent_attention.cpu import CPULatentAttention
from kernels.latent_attention.torch import TorchLatentAttention
from kernels.paged_attention.cpu import CPUAttention
from kernels.paged_attention.reference import ReferenceAttention
from kernels.paged_attention.torch import TorchAttention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def native_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a compiler; nothing is called, only bound."""

    class Library:
        def __getattr__(self, name: str):
            return lambda *arguments: 0

    monkeypatch.setattr(native, "library", Library)


@pytest.fixture
def native_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)


def test_reference_is_taken_for_every_operation():
    kernels = table.resolve("reference", CPU, torch.float32)
    assert kernels.name == "reference"
    assert isinstance(kernels.attention, ReferenceAttention)
    ops = (
        kernels.linear,
        kernels.rms_norm,
        kernels.add_rms_norm,
        kernels.rotary,
        kernels.silu_mul,
        kernels.store_kv,
        kernels.rotate_and_store,
        kernels.store_latents,
    )
    assert all(op.__module__.endswith(".reference") for op in ops)


def test_torch_is_taken_for_every_operation():
    kernels = table.resolve("torch", CPU, torch.bfloat16)
    assert kernels.name == "torch"
    assert isinstance(kernels.attention, TorchAttention)
    ops = (
        kernels.linear,
        kernels.rms_norm,
        kernels.add_rms_norm,
        kernels.rotary,
        kernels.silu_mul,
        kernels.store_kv,
        kernels.rotate_and_store,
        kernels.store_latents,
    )
    assert all(op.__module__.endswith(".torch") for op in ops)


@pytest.mark.parametrize("choice", ["auto", "native"])
@pytest.mark.usefixtures("native_is_built")
def test_a_cpu_with_the_library_takes_native_kernels(choice):
    kernels = table.resolve(choice, CPU, torch.float32)
    assert kernels.name == "native"
    assert isinstance(kernels.attention, CPUAttention)
    assert isinstance(kernels.latent_attention, CPULatentAttention)
    assert isinstance(kernels.selective_attention, TorchLatentAttention), "only that one computes selections"
    ops = (
        kernels.rms_norm,
        kernels.add_rms_norm,
        kernels.rotary,
        kernels.silu_mul,
        kernels.rotate_and_store,
        kernels.store_latents,
    )
    assert all(op.__module__.endswith(".cpu") for op in ops)


@pytest.mark.usefixtures("native_is_not_built")
def test_auto_on_a_cpu_without_the_library_falls_back_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert table.resolve("auto", CPU, torch.bfloat16).name == "torch"
    assert "apt install g++" in caplog.text


@pytest.mark.usefixtures("native_is_not_built")
def test_native_by_name_raises_without_the_library():
    with pytest.raises(table.KernelUnavailableError, match=r"--kernels native cannot run here: .*not built"):
        table.resolve("native", CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.float16, "bfloat16 and float32, and the dtype is torch.float16"),
        (CUDA, torch.bfloat16, "for a CPU, and the device is cuda"),
    ],
)
@pytest.mark.usefixtures("native_is_built")
def test_native_by_name_raises_where_it_cannot_run(device, dtype, reason):
    with pytest.raises(table.KernelUnavailableError, match=reason):
        table.resolve("native", device, dtype)


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.bfloat16, "needs a GPU, and the device is cpu"),
        (CUDA, torch.float32, "float16 or bfloat16, and the dtype is torch.float32"),
        (CUDA, torch.bfloat16, r"not installed \(pip install"),
    ],
)
def test_flash_attn_by_name_raises_where_it_cannot_run(monkeypatch, device, dtype, reason):
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(table.KernelUnavailableError, match=reason):
        table.resolve("flash-attn", device, dtype)


def test_auto_on_a_gpu_without_flash_attn_falls_back_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        kernels = table.resolve("auto", CUDA, torch.bfloat16)
    assert kernels.name == "torch"
    assert isinstance(kernels.attention, TorchAttention)
    assert "flash-attn package is not installed" in caplog.text
