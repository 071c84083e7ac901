"""Supervised fine-tuning: next tokens of the assistant's messages.

Chats are written by the tokenizer's chat template, and their targets are the assistant's tokens alone
(training.data.chats); so the loss is pre-training's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.objectives.language_model import LanguageModel

if TYPE_CHECKING:
    from training.config import Settings


def make(_settings: Settings) -> LanguageModel:
    """There is nothing to set."""
    return LanguageModel()
