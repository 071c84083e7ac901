"""docs/apis.md names every field of requests for embeddings, classes, scores and ranks; OpenAI's are all known."""

import re
import typing
from pathlib import Path

import pytest
from openai.types import embedding_create_params

from server.heads.cohere import CohereEmbeddingRequest
from server.heads.protocol import ClassificationRequest, EmbeddingRequest
from server.heads.scores import RerankRequest, ScoreRequest

PAGE = (Path(__file__).parents[3] / "docs" / "apis.md").read_text(encoding="utf-8")


def named(*headings):
    """The words in code in the first columns of the tables below these headings."""
    sections = [re.findall(rf"^## {heading}\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE)[0] for heading in headings]
    cells = [cell for section in sections for cell in re.findall(r"^\| +(`.*?)\|", section, re.MULTILINE)]
    return {name for cell in cells for name in re.findall(r"`(\w+)", cell)}


@pytest.mark.parametrize(
    ("kinds", "headings"),
    [
        ((EmbeddingRequest, ClassificationRequest), ["Embeddings"]),
        ((CohereEmbeddingRequest,), ["Embeddings as Cohere has them"]),
        ((ScoreRequest, RerankRequest), ["Embeddings", "Scores and ranks"]),
    ],
)
def test_the_page_has_every_field(kinds, headings):
    for kind in kinds:
        assert {*kind.model_fields, *kind.neutral_values} - named(*headings) == {"model"} & kind.model_fields.keys()


def test_the_page_has_no_other_field():
    known = {"rank_fields", "max_chunks_per_doc", "instruction"}  # refused
    for kind in (EmbeddingRequest, ClassificationRequest, ScoreRequest, RerankRequest):
        known |= {*kind.model_fields, *kind.neutral_values}
    assert named("Embeddings", "Scores and ranks") <= known
    known = {"model", "images", "inputs", *CohereEmbeddingRequest.model_fields}
    assert named("Embeddings as Cohere has them") == known - {"model"}


def test_every_field_of_openais_package_is_taken():
    assert (
        typing.get_type_hints(embedding_create_params.EmbeddingCreateParams).keys()
        <= EmbeddingRequest.model_fields.keys()
    )
