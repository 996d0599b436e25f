"""python launch.py sweep=NAME [model=NAME] [data=NAME] [cluster=NAME] [tracker=NAME] [mode=MODE] [key=value ...]

The only Hydra entry. Exit code 0: every trial is recorded; 2: bad input, before any work; 3: some trials failed for
good; 130: interrupted, resumable; 1: this machine gave out (a full disk, say), resumable too.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from circuits.naming import nearest
from sweeps.composition import config_folder, nearest_key, register, schema_keys, typed
from sweeps.config import ConfigError

GAVE_OUT, BAD_INPUT, FAILED_TRIALS, INTERRUPTED = 1, 2, 3, 130
_EXPECTED = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def main() -> None:
    """Console entry: check the command line first, so that a mistake costs one line and no work."""
    register()
    parser = get_args_parser()
    parser.error = _fail  # type: ignore[method-assign]  # argparse would print its usage as well
    flags = parser.parse_args()
    elsewhere = flags.config_name or flags.config_path or flags.config_dir
    if not (elsewhere or flags.hydra_help or flags.shell_completion):
        problem = _problem(flags.overrides, multirun=flags.multirun)
        if problem:
            _fail(problem)
    codes: list[int] = []

    @functools.wraps(_launch)
    def job(composed: DictConfig) -> None:
        codes.append(_launch(composed))
        if codes[-1] not in {0, FAILED_TRIALS}:
            sys.exit(codes[-1])  # nothing else of a --multirun would fare better

    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)()
    except KeyboardInterrupt:
        codes.append(INTERRUPTED)
    sys.exit(max(codes, default=0))


def _launch(composed: DictConfig) -> int:
    """Run one composed configuration; returns the exit code."""
    from circuits.data.sources import DataError
    from circuits.denoisers import ModelError
    from sweeps.records import GaveOut, RunDirectoryError

    try:
        config = typed(composed)
        from sweeps.driver import execute  # the report and the tracker: a mistyped key need not wait for them

        return execute(config)
    except GaveOut as error:
        _say(f"{error}; what is recorded is kept, and the same command goes on from there")
        return GAVE_OUT
    except (ConfigError, DataError, ModelError, RunDirectoryError) as error:
        _say(str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
        return INTERRUPTED


def _problem(overrides: list[str], multirun: bool = False) -> str | None:
    """What is wrong with the overrides, in one line, or None."""
    try:
        jobs = list(_jobs(overrides)) if multirun else [overrides]
    except HydraException as error:
        return _explain(error, overrides)
    for job in jobs:
        try:
            _compose(job)
        except ConfigError as error:
            return str(error)
        except Exception as error:  # Hydra and OmegaConf raise ValueError and AssertionError for some mistakes too
            return _explain(error, job)
    return None


def _compose(overrides: list[str]) -> None:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            typed(compose("config", overrides=overrides))
    finally:
        GlobalHydra.instance().clear()


def _jobs(overrides: list[str]) -> Iterator[list[str]]:
    """The command lines that a --multirun stands for."""
    choices: list[list[str]] = []
    for given in OverridesParser.create().parse_overrides(overrides):
        if given.is_sweep_override():
            key = given.get_key_element()
            choices.append([f"{key}={value}" for value in given.sweep_string_iterator()])
        else:
            choices.append([given.input_line or ""])
    return map(list, itertools.product(*choices))


def _explain(error: Exception, overrides: list[str]) -> str:
    """One line for what Hydra says in several, with the nearest valid choice."""
    text = str(error)
    group = re.search(r"In 'config': Could not find '([^'/]+)/([^']*)'", text)
    if group:
        return f"{group[1]}: unknown {group[2]!r}{nearest(group[2], _options(group[1]))}"
    cause = error.__cause__ or error
    line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is no setting; expected key=value ({_parser_says(cause)})"
    ambiguous = re.search(r"Ambiguous value for argument '([^=']+)=(.*)'", text)
    if ambiguous:
        key, value = ambiguous[1], ambiguous[2]
        return f"{key}: a list needs quotes and brackets, '{key}=[{value}]'; to sweep over the values, add --multirun"
    unknown = re.search(r"Could not override '([^']+)'|Could not delete from config\. '([^']+)' does not exist", text)
    if unknown:
        key = unknown[1] or unknown[2]
        if unknown[2] in schema_keys():  # Hydra cannot delete what has no value
            return f"~{key}: cannot be used; {key} has no value to take away"
        return f"unknown key {key!r}" + ("" if key.startswith("hydra.") else nearest_key(key))
    key = getattr(cause, "full_key", None) if isinstance(cause, OmegaConfBaseException) else None
    value_type = re.match(r"Value (.*) of type '.*' could not be converted to (\w+)", line)
    if key and value_type:
        return f"{key}: expected {_EXPECTED.get(value_type[2], value_type[2])}, got {value_type[1]}"
    return f"{_offender(overrides)}: cannot be used ({line})"


def _parser_says(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    useful = [line for line in lines if line and not line.startswith(("Error parsing", "See https", "^"))]
    return useful[0] if useful else "it cannot be parsed"


def _offender(overrides: list[str]) -> str:
    """The first override that cannot be composed with those before it."""
    for count in range(1, len(overrides) + 1):
        try:
            _compose(overrides[:count])
        except ConfigError:
            continue
        except Exception:
            return overrides[count - 1]
    return "the configuration"


def _options(group: str) -> list[str]:
    return sorted(p.stem for p in (config_folder() / group).glob("*.yaml"))


def _say(message: str) -> None:
    print("error: " + " ".join(line.strip() for line in message.strip().splitlines()), file=sys.stderr)


def _fail(message: str) -> NoReturn:
    _say(message)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
