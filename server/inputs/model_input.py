"""The one form in which prompts go to the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A prompt as the model reads it.

    Attributes:
        token_ids: of the model's vocabulary.
        modalities: the id of each token's modality (engine.protocol.MODALITIES); empty is text for all.
    """

    token_ids: list[int]
    modalities: bytes = b""

    def __len__(self) -> int:
        return len(self.token_ids)

    def __add__(self, other: ModelInput) -> ModelInput:
        """This prompt, then the other."""
        modalities = self._all_modalities + other._all_modalities if self.modalities or other.modalities else b""
        return ModelInput(self.token_ids + other.token_ids, modalities)

    def __getitem__(self, tokens: slice) -> ModelInput:
        """Some of the tokens, with their modalities."""
        return ModelInput(self.token_ids[tokens], self.modalities[tokens])

    def with_output(self, token_ids: list[int]) -> ModelInput:
        """This prompt and output behind it, which has the modality of the prompt's last token, as in the engine."""
        return self + ModelInput(token_ids, self.modalities[-1:] * len(token_ids))

    @property
    def _all_modalities(self) -> bytes:
        return self.modalities or bytes(len(self))
