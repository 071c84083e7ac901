"""deepseek-serve fetch: what is there already is success, what is not a model is an error that names it."""

from server.commands import fetch


def test_a_folder_that_is_there_is_success(tmp_path, caplog):
    assert fetch.main(["--model", "org/name", "--out", str(tmp_path)]) == 0


def test_a_name_that_is_no_hub_id_is_the_users_error(tmp_path, capsys):
    assert fetch.main(["--model", "smollm2", "--out", str(tmp_path / "name")]) == 2
    assert capsys.readouterr().err.startswith("deepseek-serve fetch: error: --model smollm2 is not a hub id")
