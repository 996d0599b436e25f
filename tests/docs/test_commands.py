"""Every command in README and docs can be given as it stands: its settings compose, its files and targets are there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable

import pytest

import launch
from sweeps.composition import register
from sweeps.config import RUN_MODES
from tests.docs.pages import DOCS, PAGES, ROOT, Block, blocks, prose, shell_lines

MULTIRUN = ("--multirun", "-m")
ASKING = ("--cfg", "-c", "--info", "-i", "--package", "-p")
ELSEWHERE = {"--config-dir", "-cd", "--hydra-help", "--shell-completion", "-sc"}
BLOCKS = [block for page in PAGES for language in ("", "bash", "sh", "console") for block in blocks(page, language)]
COMMANDS = [
    (block, line)
    for block in BLOCKS
    for line in shell_lines(block)
    if re.match(r"(?:[A-Z_]+=\S+ )*(?:python|make|wandb|sbatch|kubectl|docker|ray|circuit-sweep)\b", line)
]
PROVOKED = {(block.place, line) for block in BLOCKS for line in shell_lines(block) if "\nerror: " in f"\n{block.text}"}
"""Commands that are shown for the error that they print; ``test_errors`` runs them."""


@pytest.fixture(scope="module", autouse=True)
def _schema() -> None:
    register()


def inline_commands() -> list[tuple[str, str]]:
    """``python launch.py ...`` and settings such as ``mode=train model=tiny_unet`` between backticks."""
    found = [(page, text) for page in PAGES for text in re.findall(r"`([^`\n]+)`", prose(page))]
    return [(page.name, text) for page, text in found if text.startswith(("python launch.py ", "make ", "python -m "))]


def program(words: list[str]) -> list[str]:
    """Without the environment before it and pipes behind."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    for end in ("|", "&&", ">", "&"):
        words = words[: words.index(end)] if end in words else words
    return words


def check_launch(arguments: list[str]) -> None:
    flags = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    if flags & ELSEWHERE:
        return  # what is composed is in the user's own files, or nothing is
    asked = [place + 1 for place, word in enumerate(arguments) if word in ASKING]  # "--cfg job"
    settings = [word for place, word in enumerate(arguments) if not word.startswith("-") and place not in asked]
    problem = launch._problem(settings, multirun=bool(flags & set(MULTIRUN)))
    assert problem is None, problem


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in arguments:
        if "=" in word:
            name, value = word.split("=", 1)
            if name == "ARGS":
                check_launch(shlex.split(value))
        else:
            assert word in targets, f"no target {word} in the Makefile"


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        module = arguments[1]
        known = importlib.util.find_spec(module.partition(".")[0]) and importlib.util.find_spec(module)
        assert known, f"no module {module}"
    else:
        assert (ROOT / arguments[0]).is_file(), f"no file {arguments[0]}"
        if arguments[0] == "launch.py":
            check_launch(arguments[1:])


def check_files(arguments: list[str]) -> None:
    """Files of the checkout that other programs are given."""
    for word in arguments:
        if word.startswith("deploy/"):
            assert (ROOT / word).exists(), f"no file {word}"
    if arguments and arguments[0].startswith("deploy/slurm"):
        check_launch(arguments[1:])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "python": check_python,
    "make": check_make,
    "circuit-sweep": check_launch,
}


def check(line: str) -> None:
    name, *arguments = program(shlex.split(line))
    CHECKS.get(name, check_files)(arguments)


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=[f"{block.place} {line}"[:90] for block, line in COMMANDS])
def test_a_command_can_be_given(block: Block, line: str) -> None:
    if (block.place, line) not in PROVOKED:
        check(line)


@pytest.mark.parametrize(("page", "line"), inline_commands(), ids=[f"{p} {line}"[:90] for p, line in inline_commands()])
def test_a_command_in_a_sentence_can_be_given(page: str, line: str) -> None:
    check(line)


def test_the_page_of_settings_names_every_mode() -> None:
    (row,) = re.findall(r"^\| `mode` \|.*$", (DOCS / "settings.md").read_text(), re.MULTILINE)
    assert set(RUN_MODES) <= set(re.findall(r"`(\w+)`", row))


def test_a_wrong_command_is_found() -> None:
    """The checks can fail."""
    assert len(COMMANDS) > 20
    for wrong in (
        "python launch.py sweep.modes=[zeor]",
        "python launch.py --multirun model=tiny_faces,tiny_unat",
        "make swep",
        'make sweep ARGS="cluster=inlin"',
        "python -m benchmarks.sped",
        "python lunch.py",
        "kubectl apply -f deploy/nothing.yaml",
        "sbatch deploy/slurm.sh sweep=nothing",
    ):
        with pytest.raises(AssertionError):
            check(wrong)
