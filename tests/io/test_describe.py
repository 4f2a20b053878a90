"""Settings of folders, read without their models."""

import json

from otfuse.fusion.differences import differences
from otfuse.io.checkpoint import open_checkpoint
from otfuse.io.describe import completed, describe


def edit(folder, change):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def notes(tmp_path):
    return differences(describe([open_checkpoint(tmp_path / name) for name in ("a", "b")]))


def test_settings_are_compared_from_the_folders(tmp_path, build):
    for name in ("a", "b"):
        build("llama").save_pretrained(tmp_path / name)
    assert notes(tmp_path) == []
    edit(tmp_path / "b", lambda s: s.update(rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    (note,) = notes(tmp_path)
    assert note.endswith("in rope_parameters.rope_theta 500.0 (10000.0)")


def test_what_an_older_library_wrote_counts_as_the_same(tmp_path, build):
    for name in ("a", "b"):
        build("llama").save_pretrained(tmp_path / name)

    def older(settings):
        del settings["rope_parameters"], settings["mlp_bias"]
        settings["rope_theta"] = 10000.0

    edit(tmp_path / "b", older)
    assert notes(tmp_path) == []
    edit(tmp_path / "b", lambda s: s.update(rope_theta=500.0))
    assert "rope_theta 500.0 (10000.0)" in notes(tmp_path)[0]


def test_a_config_that_no_class_takes_is_compared_as_it_is():
    for odd in ({"model_type": "none of all"}, {}, {"model_type": 3}, {"model_type": "bert", "hidden_size": "wide"}):
        assert completed(odd) == odd
