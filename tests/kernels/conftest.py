import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _two_threads_again() -> None:
    """Engines that ran before set their own number; kernels shall be shared out to more than one."""
    torch.set_num_threads(2)
