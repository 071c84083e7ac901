"""A checkpoint says how its embeddings are pooled; what it does not say, and what it asks for in vain."""

import json

import pytest

from engine.errors import ModelError, RequestError
from server.heads.defaults import EmbeddingDefaults, read_embedding_defaults

TYPES = "sentence_transformers.models."


def write(folder, *modules, **pooling):
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": TYPES + name}
        for i, name in enumerate(("Transformer", *modules))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for module in listed:
        (folder / module["path"]).mkdir(exist_ok=True)
    if "Pooling" in modules:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))
    return folder


def test_a_checkpoint_that_says_nothing_has_its_last_token_normalised(tmp_path):
    assert read_embedding_defaults("auto", tmp_path) == EmbeddingDefaults("last", normalize=True)
    assert read_embedding_defaults("auto", tmp_path / "model.gguf") == EmbeddingDefaults("last", normalize=True)
    assert read_embedding_defaults("mean", tmp_path) == EmbeddingDefaults("mean", normalize=True)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers_files_are_read(tmp_path, config, pooling):
    assert read_embedding_defaults("auto", write(tmp_path, "Pooling", "Normalize", **config)) == EmbeddingDefaults(
        pooling, normalize=True
    )
    assert not read_embedding_defaults("auto", write(tmp_path, "Pooling", **config)).normalize


def test_the_flag_wins(tmp_path):
    write(tmp_path, "Pooling", pooling_mode_cls_token=True)
    assert read_embedding_defaults("mean", tmp_path) == EmbeddingDefaults("mean", normalize=False)


@pytest.mark.parametrize(
    ("modules", "config", "missing"),
    [
        (["Pooling"], {"pooling_mode_cls_token": True}, "the pooling 'cls_token'"),
        (["Pooling"], {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "'mean_tokens+max_tokens'"),
        (["Pooling", "Dense"], {"pooling_mode": "mean"}, "the module 'Dense'"),
        ([], {}, "the pooling 'none'"),
    ],
)
def test_what_cannot_be_done_is_refused_unless_the_request_says_otherwise(tmp_path, modules, config, missing):
    defaults = read_embedding_defaults("auto", write(tmp_path, *modules, **config))
    with pytest.raises(RequestError, match="which this server has not") as caught:
        defaults.pooling_for(None)
    assert missing in str(caught.value)
    assert caught.value.param == "pooling"
    assert defaults.pooling_for("mean") == "mean"


_NO_LIST = 'it is not a list of objects with "type" and "path"'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("null", _NO_LIST),
        ('{"type": "a"}', _NO_LIST),
        ("[1]", _NO_LIST),
        ('[{"type": "Pooling"}]', _NO_LIST),
        ('[{"type": 1, "path": ""}]', _NO_LIST),
        ('[{"type": "a.Pooling", "path": "../x"}]', "a module lies outside"),
        ("[" * 100000, "recursion"),
    ],
)
def test_damaged_files_are_a_model_error(tmp_path, text, reason):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=rf"modules\.json cannot be read: .*{reason}"):
        read_embedding_defaults("auto", tmp_path)


def test_a_checkpoints_prompts_are_read(tmp_path):
    assert read_embedding_defaults("auto", tmp_path).prompts == {}
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text(
        json.dumps({"prompts": {"query": "q: ", "document": "", "bad": None}, "similarity_fn_name": "cosine"})
    )
    assert read_embedding_defaults("mean", tmp_path) == EmbeddingDefaults(
        "mean", prompts={"query": "q: ", "document": ""}
    )
    path.write_text("{")
    with pytest.raises(ModelError, match=r"config_sentence_transformers\.json"):
        read_embedding_defaults("auto", tmp_path)
