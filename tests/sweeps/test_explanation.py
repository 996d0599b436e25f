"""``--help`` says what every group and every key is, and which values a command line has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeps.composition import config_folder
from sweeps.config import CHOICES, LISTS, RUN_MODES
from sweeps.explanation import explained
from sweeps.groups import options
from sweeps.settings import settings
from tests.sweeps.conftest import Said


def unwrapped(page: str) -> str:
    """Entries on one line each, as before they were wrapped."""
    return re.sub(r"\n {40}", " ", page)


def test_every_key_is_there_with_its_comment(said: Said) -> None:
    code, error, page = said("--help")
    assert (code, error) == (0, "")
    text = re.sub(r" +", " ", unwrapped(page))
    for setting in settings():
        if setting.is_group:
            assert f"\n {setting.key}: {setting.about}\n" in text
        else:
            assert re.search(rf"\n {re.escape(setting.key)}(=\S*| \(\d+\)) {re.escape(setting.about)}", text), setting
    for key, valid in (CHOICES | LISTS).items():
        entry = re.search(rf"\n {re.escape(key)}=.*", text)
        assert entry
        assert not [choice for choice in valid if choice not in entry[0]], f"{key} does not say what is valid"
    assert len(settings()) > 90


def test_every_option_of_every_group_is_there_with_its_comment(said: Said) -> None:
    text = re.sub(r" +", " ", unwrapped(said("--help")[2]))
    for group, found in options().items():
        for option in found:
            assert len(option.about) > 20, f"{option.file} does not say what it is"
            first = option.about.split(".")[0]
            assert re.search(rf"\n (\* )?{option.name} {re.escape(first)}", text.replace("- ", "-")) or first in text
            assert group in text
    assert "\n * full_ablation " in text
    assert "\n * smoke " not in text


def test_values_are_those_of_the_command_line(said: Said) -> None:
    page = said("--help", "sweep=smoke", "stats.alpha=0.01", "sweep.modes=[zero]", "data.root=/pictures")[2]
    for shown in ("* smoke", "stats.alpha=0.01 ", "sweep.modes=[zero] ", "data.root=/pictures", "sweep.images=16"):
        assert shown in page
    assert "* full_ablation" not in page


def test_no_line_is_wider_than_the_page(said: Said) -> None:
    assert max(map(len, said("--help")[2].splitlines())) <= 120


def test_values_are_written_as_they_are_given() -> None:
    values = {"mode": "run", "sweep": {"levels": ["head", 1, True, None, 0.5]}, "data": {"sets": []}}
    page = explained(values, "circuit-sweep")
    assert "sweep.levels=[head,1,true,null,0.5]" in page
    assert "Usage: circuit-sweep [sweep=NAME]" in page


def test_the_users_own_options_are_marked(said: Said, tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.mktemp("own")
    (own / "model").mkdir()
    (own / "model" / "mine.yaml").write_text("# Trained last night.\nname: mine\npath: x\n")
    page = said("--config-dir", str(own), "--help")[2]
    assert re.search(r"\n    \+ mine +Trained last night\.\n", page)


def test_the_readme_of_the_groups_agrees() -> None:
    """The comments in config.yaml name options by hand."""
    text = (config_folder() / "config.yaml").read_text()
    for group, found in options().items():
        line = re.search(rf"^  - {group}: .*# (.*)$", text, re.MULTILINE)
        if line:
            named = {option.name for option in found if re.search(rf"\b{option.name}\b", line[1])}
            assert named or group == "experiment", f"{group} names none of its options"
    assert set(RUN_MODES) <= set(re.findall(r"\w+", text))


def test_a_file_that_cannot_be_read_has_no_comment(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "binary.yaml").write_bytes(b"\xff\xfe# x")
    assert [option.about for option in options(tmp_path)["model"] if option.own] == [""]
