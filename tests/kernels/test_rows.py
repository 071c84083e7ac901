"""Operations that look rows up: embedding, modality_embedding, take_rows."""

import pytest
import torch

from kernels import embedding, modality_embedding, take_rows
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn

EMBEDDING, TAKE_ROWS = natives(NATIVE.embedding), natives(NATIVE.take_rows)
MODALITY_EMBEDDING = natives(NATIVE.modality_embedding)
ROWS = torch.tensor([4, 0, 4, 10, 7])


@pytest.mark.parametrize("size", [1, 16, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", EMBEDDING)
def test_embedding_matches_reference(version, dtype, size):
    weight = randn(11, size, dtype=dtype)
    x = EMBEDDING[version](weight, ROWS)
    assert x.dtype is torch.float32
    assert torch.equal(x, embedding.reference.embedding(weight, ROWS))


@pytest.mark.parametrize("modalities", [None, [2, 0, 1, 1, 0]], ids=["text", "several"])
@pytest.mark.parametrize("size", [1, 16, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", MODALITY_EMBEDDING)
def test_modality_embedding_matches_reference(version, dtype, size, modalities):
    weight, scale, shift = randn(11, size, dtype=dtype), *(randn(3, size, dtype=torch.float32, seed=i) for i in (1, 2))
    ids = None if modalities is None else torch.tensor(modalities)
    x = MODALITY_EMBEDDING[version](weight, scale, shift, ROWS, ids)
    assert x.dtype is torch.float32
    assert_close(x, modality_embedding.reference.modality_embedding(weight, scale, shift, ROWS, ids))


def test_modality_embedding_by_hand():
    table = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([[0.0, 0.0], [0.5, 3.0]])
    x = modality_embedding.reference.modality_embedding(*table, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert x.tolist() == [[1.0, 2.0], [2.5, 3.0]]


@pytest.mark.parametrize("size", [1, 16, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", TAKE_ROWS)
def test_take_rows_matches_reference(version, dtype, size):
    x = randn(11, size + 3, dtype=dtype)[:, 3:]  # a view
    for rows in (ROWS, ROWS[:0]):
        y = TAKE_ROWS[version](x, rows)
        assert y.is_contiguous()
        assert torch.equal(y, take_rows.reference.take_rows(x, rows))
