"""Operations that look rows up: embedding, take_rows."""

import pytest
import torch

from kernels import embedding, take_rows
from tests.kernels.compare import DTYPES, NATIVE, dtype_id, natives, randn

EMBEDDING, TAKE_ROWS = natives(NATIVE.embedding), natives(NATIVE.take_rows)
ROWS = torch.tensor([4, 0, 4, 10, 7])


@pytest.mark.parametrize("size", [1, 16, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", EMBEDDING)
def test_embedding_matches_reference(version, dtype, size):
    weight = randn(11, size, dtype=dtype)
    x = EMBEDDING[version](weight, ROWS)
    assert x.dtype is torch.float32
    assert torch.equal(x, embedding.reference.embedding(weight, ROWS))


@pytest.mark.parametrize("size", [1, 16, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", TAKE_ROWS)
def test_take_rows_matches_reference(version, dtype, size):
    x = randn(11, size + 3, dtype=dtype)[:, 3:]  # a view
    for rows in (ROWS, ROWS[:0]):
        y = TAKE_ROWS[version](x, rows)
        assert y.is_contiguous()
        assert torch.equal(y, take_rows.reference.take_rows(x, rows))
