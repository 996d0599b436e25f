"""What is said to differ between two runs."""

from sweeps.differences import differences


def test_what_one_run_lacks_and_the_other_has_not_set_is_no_difference():
    a = {
        "model": {"name": "early", "training": None},
        "run": {"name": "a"},
        "format": "csv",
        "stats": {"futility": None},
    }
    b = {"model": {"name": "tiny", "training": {"steps": 300, "folder": None}}, "run": {"name": "b"}, "stats": {}}
    facts_a = {"device": "CPU", "versions": {"torch": "2.13"}}
    facts_b = {"device": "CPU", "versions": {"torch": "2.14"}}
    assert differences(a, b, facts_a, facts_b) == [
        {"what": "model.name", "a": "early", "b": "tiny"},
        {"what": "versions.torch", "a": "2.13", "b": "2.14"},
        {"what": "model.training.steps", "a": "–", "b": "300"},
    ]
