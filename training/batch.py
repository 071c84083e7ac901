"""What goes into the model and into a loss: plain tensors of one micro batch.

B rows of a batch, T padded tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch

IGNORED = -100  # a target that counts in no loss


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows of tokens, padded on the right. Padding takes no expert's place, and no token sees it.

    Attributes:
        token_ids_BT: int64; padding may have any valid id.
        modality_ids_BT: int64; engine.protocol.MODALITIES.
        lengths_B: int64; tokens of each row without its padding, 1 or more.
    """

    token_ids_BT: torch.Tensor
    modality_ids_BT: torch.Tensor
    lengths_B: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.lengths_B.sum())

    def to(self, device: torch.device) -> Self:
        """The same tokens on another device."""
        return replace(
            self,
            token_ids_BT=self.token_ids_BT.to(device, non_blocking=True),
            modality_ids_BT=self.modality_ids_BT.to(device, non_blocking=True),
            lengths_B=self.lengths_B.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro batch: tokens, and what is to be learnt of them.

    Attributes:
        targets_BT: int64, the token that should follow each token; IGNORED counts in no loss.
        labels_B: int64, the class of each row; None where the objective has no classes.
    """

    tokens: TokenBatch
    targets_BT: torch.Tensor
    labels_B: torch.Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        labels_B = None if self.labels_B is None else self.labels_B.to(device, non_blocking=True)
        return replace(self, tokens=self.tokens.to(device), targets_BT=self.targets_BT.to(device), labels_B=labels_B)
