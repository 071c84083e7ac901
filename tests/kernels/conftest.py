import pytest
import torch

from tests.kernels.compare import LIBRARIES


@pytest.fixture(autouse=True, scope="package")
def _two_threads_again() -> None:
    """Engines that ran before set their own number; kernels shall be shared out to more than one."""
    torch.set_num_threads(2)
    for library in LIBRARIES.values():
        library.set_threads(2)
