"""Tab completion: what may follow on a command line, from the files under conf/ and the types of the settings.

The shell calls ``launch.py -sc query=SHELL`` at every Tab, so nothing is composed here and nothing heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sweeps.config import CHOICES, LISTS, MISSING, RunConfig
from sweeps.groups import EXPERIMENT, names, options
from sweeps.settings import settings

FLAGS = ("--cfg", "--config-dir", "--help", "--multirun", "--resolve")
_CFG = ("--cfg", "-c")
_CONFIG_DIR = ("--config-dir", "-cd")
_PATHS = ("data.root", "model.path", "run.root")
_RUNS = ("run.name", "run.a", "run.b")

_BASH = """\
_circuit_sweep() {
    local line="${COMP_LINE:0:COMP_POINT}" words program word kept
    read -ra words <<< "$line"
    case "${words[0]##*/}" in
        python*)
            [[ "${words[1]##*/}" == launch.py && -f "${words[1]}" ]] || return 0
            program=("${words[0]}" "${words[1]}") ;;
        *) program=("${words[0]}") ;;
    esac
    mapfile -t COMPREPLY < <(COMP_LINE="$line" "${program[@]}" -sc query=bash 2> /dev/null)
    # Bash replaces what follows the last "=" or ":" of an unquoted word, and a quoted word whole.
    word="${line##* }"
    if [[ "$word" != [\\"\\']* ]]; then
        kept="${word%"${word##*[=:]}"}"
        COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    fi
}
"""


def install(shell_program: str) -> str:
    """What bash has to evaluate; ``shell_program`` is the script or the installed command."""
    return f"{_BASH}complete -o nospace -o default -F _circuit_sweep {_completed(shell_program)}"


def uninstall(shell_program: str) -> str:
    return f"complete -r {_completed(shell_program)}; unset -f _circuit_sweep"


def _completed(shell_program: str) -> str:
    return "python python3" if shell_program.endswith(".py") else Path(shell_program).name


def candidates(line: str) -> list[str]:
    """What the last word of a command line may become; ``line`` ends at the cursor."""
    words = line.split()
    word = "" if not words or line[-1].isspace() else words.pop()
    word = word.lstrip("\"'")
    given = words[2:] if words and Path(words[0]).name.startswith("python") else words[1:]
    before = given[-1] if given else ""
    if before in _CFG:
        return _beginning(word, ("all", "hydra", "job"))
    if before in _CONFIG_DIR:
        return _files(word)
    if word.startswith("-"):
        return _beginning(word, FLAGS)
    own = _own_folder(given)
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~")
    if equals:
        return [f"{key}={choice}" for choice in _values(bare, value, given, own)]
    sign = key[: len(key) - len(bare)]
    added = [f"+{EXPERIMENT}="] if (sign in ("", "+") and bare and EXPERIMENT.startswith(bare)) or sign == "+" else []
    return [*(sign + choice for choice in _keys(bare, own) if sign != "+"), *added]


def _keys(start: str, own: Path | None) -> list[str]:
    """Groups, and the settings of one level."""
    found = [f"{group}=" for group in options(own) if group != EXPERIMENT]
    found += [s.key + ("." if s.is_group else "=") for s in settings() if s.key.count(".") == start.count(".")]
    return _beginning(start, found)


def _values(key: str, value: str, given: Sequence[str], own: Path | None) -> list[str]:
    """What a key can be set to, as far as it is known; the rest of what it may hold is the shell's or the user's."""
    choices = names(key, own) if key in options(own) else CHOICES.get(key) or LISTS.get(key)
    if choices:
        several = key in LISTS and value.startswith("[")
        return _last_of(value, choices) if several or {"--multirun", "-m"} & set(given) else _beginning(value, choices)
    if key in _PATHS:
        return _files(value)
    if key in _RUNS:
        named = _beginning(value, _run_names(given))
        return named if named or key == "run.name" else _files(value)
    setting = next((known for known in settings() if known.key == key), None)
    if setting is not None and setting.kind is bool:
        return _beginning(value, ("false", "true"))
    default = "" if setting is None or setting.default in (None, MISSING) else str(setting.default)
    return [default] if default and not value else []


def _beginning(start: str, choices: Iterable[str]) -> list[str]:
    return [choice for choice in choices if choice.startswith(start)]


def _last_of(value: str, choices: Iterable[str]) -> list[str]:
    """Choices for the last element of a list; those that are in it are not offered again."""
    opened = value[:1] if value.startswith("[") else ""
    *before, last = value[len(opened) :].split(",")
    left = [choice for choice in choices if choice not in before]
    return [opened + ",".join([*before, choice]) for choice in _beginning(last, left)]


def _own_folder(given: Sequence[str]) -> Path | None:
    """The user's folder of settings, where the command line names one."""
    for word, following in zip(given, [*given[1:], ""]):
        flag, equals, value = word.partition("=")
        if flag in _CONFIG_DIR:
            folder = Path(value if equals else following).expanduser()
            return folder if folder.is_dir() else None
    return None


def _run_names(given: Sequence[str]) -> list[str]:
    roots = [word.partition("=")[2] for word in given if word.startswith("run.root=")]
    root = Path(roots[-1] if roots else RunConfig.root).expanduser()
    return sorted(folder.parent.name for folder in root.glob("*/run.json"))


def _files(start: str) -> list[str]:
    """Files and folders that begin so; folders end in a slash, so that one can go on."""
    folder, _, name = start.rpartition("/")
    place = Path(f"{folder}/" if "/" in start else ".").expanduser()
    try:
        found = sorted((e for e in os.scandir(place) if e.name.startswith(name)), key=lambda entry: entry.name)
    except OSError:
        return []
    shown = [entry for entry in found if name.startswith(".") or not entry.name.startswith(".")]
    prefix = f"{folder}/" if "/" in start else ""
    return [f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}" for entry in shown]
