"""python launch.py sweep=NAME [model=NAME] [data=NAME] [cluster=NAME] [tracker=NAME] [mode=MODE] [key=value ...]

The only Hydra entry. Exit code 0: every trial is recorded; 2: bad input, before any work; 3: some trials failed for
good; 130: interrupted, resumable; 1: this machine gave out (a full disk, say), resumable too.
"""

from __future__ import annotations

import argparse
import errno
import functools
import itertools
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra import compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from circuits.naming import nearest, nearest_folder
from sweeps import completion, explanation, groups, multirun
from sweeps.composition import config_folder, nearest_key, register, schema_keys, typed
from sweeps.config import Config, ConfigError
from sweeps.exit_codes import BAD_INPUT, FAILED_TRIALS, GAVE_OUT, INTERRUPTED, OK

_GOES_ON = "what is recorded is kept, and the same command goes on from there"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # of a file that is not published: a figure, say
_EXPECTED = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def console() -> None:
    """``main`` in a process of its own: a Ctrl-C before or after its work ends it without a traceback."""
    try:
        main()
    except KeyboardInterrupt:  # while the command line was read: nothing is under way
        sys.exit(INTERRUPTED)
    finally:
        # Libraries clean up while the process ends, torch and Ray too; a KeyboardInterrupt there is a traceback.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's "&" has it ignored
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Check the command line first, so that a mistake costs one line and no work; then run it."""
    register()
    parser = get_args_parser()
    parser.error = _fail  # type: ignore[method-assign]  # argparse would print its usage as well
    flags = parser.parse_args()
    if flags.shell_completion and _complete(flags.overrides):
        sys.exit(0)
    if flags.experimental_rerun:
        _fail("--experimental-rerun: a pickled configuration can run code; give the settings instead")
    own = _own_folder(flags.config_dir)
    elsewhere = flags.config_name or flags.config_path
    if not (elsewhere or flags.hydra_help or flags.shell_completion):
        problem = _problem(flags.overrides, multirun=flags.multirun, own=own)
        if problem:
            _fail(problem)
        if flags.help:
            values = OmegaConf.to_container(_composed(flags.overrides, own))
            assert isinstance(values, dict)
            print(explanation.explained({str(key): value for key, value in values.items()}, _program(), own), end="")
            sys.exit(0)
    sys.exit(_run(flags))


def _run(flags: argparse.Namespace) -> int:
    """Hydra's part: one job, or one for each combination of swept values."""
    jobs: list[multirun.Job] = []
    swept_keys = _swept_keys(flags.overrides) if flags.multirun else []
    codes: list[int] = []

    @functools.wraps(_launch)
    def job(composed: DictConfig) -> None:
        swept = multirun.swept(HydraConfig.get().overrides.task, swept_keys)
        if swept and OmegaConf.select(composed, "run.name") is not None:
            composed.run.name = multirun.run_name(str(composed.run.name), swept)
        if swept:
            print(f"Job {HydraConfig.get().job.num + 1}: {' '.join(swept)}", file=sys.stderr)
        began: list[str] = []
        code = _launch(composed, began)
        codes.append(code)
        jobs.extend(multirun.Job(swept, str(composed.run.root), name, code) for name in began)
        if code not in {OK, FAILED_TRIALS}:
            sys.exit(code)  # nothing else of a --multirun would fare better

    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)()
    except KeyboardInterrupt:
        codes.append(INTERRUPTED)
    finally:
        if swept_keys:
            print("\n".join(multirun.summary(jobs, _program())))
    return max(codes, default=OK)


def _launch(composed: DictConfig, began: list[str]) -> int:
    """Run one composed configuration; returns the exit code, and adds the name of its run directory to ``began``."""
    from sweeps.records import GaveOut, RunDirectoryError

    try:
        return _execute(typed(composed), began)
    except GaveOut as error:
        _say(f"{error}; {_GOES_ON}")
        return GAVE_OUT
    except (ConfigError, RunDirectoryError) as error:
        _say(str(error))
        return BAD_INPUT
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _say(f"{error.filename or 'a file'} could not be written ({error.strerror}); {_GOES_ON}")
        return GAVE_OUT
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
        return INTERRUPTED
    except _unloadable() as error:
        _say(str(error))
        return BAD_INPUT


def _execute(config: Config, began: list[str]) -> int:
    """What each mode needs is imported here: neither a mistyped key nor a look at a run need wait for torch."""
    if config.mode == "status":
        from sweeps.places import visiting
        from sweeps.status import show_status

        with visiting(config.run.root):
            return show_status(config)
    from sweeps.driver import execute

    return execute(config, began.append)


def _unloadable() -> tuple[type[Exception], ...]:
    """What a model or a data set that cannot be used raises."""
    from circuits.data.sources import DataError
    from circuits.denoisers import ModelError

    return DataError, ModelError


def _complete(asked: Sequence[str]) -> bool:
    """Answer ``-sc install=bash``, ``uninstall=bash`` and the shell's ``query``; the rest is Hydra's."""
    what, _, shell = " ".join(asked).partition("=")
    if what == "query":
        for candidate in completion.candidates(os.environ.get("COMP_LINE", "")):
            print(candidate)
    elif shell == "bash" and what in ("install", "uninstall"):
        print(getattr(completion, what)(Path(sys.argv[0]).name))
    return what == "query" or shell == "bash"


def _own_folder(given: str | None) -> Path | None:
    """The user's folder of settings; what cannot be used is said in one line."""
    if given is None:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        _fail(f"--config-dir: no folder {given}{nearest_folder(folder)}")
    taken = groups.clash(folder)
    if taken is not None:
        _fail(
            f"--config-dir: {taken.file} has the name of one that ships; {taken.group}={taken.name} would not be yours"
        )
    return folder


def _problem(overrides: list[str], multirun: bool = False, own: Path | None = None) -> str | None:
    """What is wrong with the overrides, in one line, or None."""
    try:
        jobs = list(_jobs(overrides)) if multirun else [overrides]
    except HydraException as error:
        return _explain(error, overrides, own)
    for job in jobs:
        try:
            typed(_composed(job, own))
        except ConfigError as error:
            return str(error)
        except Exception as error:  # Hydra and OmegaConf raise ValueError and AssertionError for some mistakes too
            return _explain(error, job, own)
    return None


def _composed(overrides: list[str], own: Path | None = None) -> DictConfig:
    """As Hydra composes it, with the user's folder where Hydra puts it: behind ours."""
    GlobalHydra.instance().clear()
    search_path = create_config_search_path(str(config_folder()))
    if own is not None:
        search_path.prepend("command-line", f"file://{own.resolve()}", SearchPathQuery(provider="schema"))
    try:
        Hydra.create_main_hydra2(task_name="launch", config_search_path=search_path)
        return compose("config", overrides=overrides)
    finally:
        GlobalHydra.instance().clear()


def _swept_keys(overrides: Sequence[str]) -> list[str]:
    """Keys that are given several values."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [given.get_key_element().lstrip("+") for given in parsed if given.is_sweep_override()]


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


def _explain(error: Exception, overrides: list[str], own: Path | None = None) -> str:
    """One line for what Hydra says in several, with the nearest valid choice."""
    text = str(error)
    group = re.search(r"In 'config': Could not find '([^'/]+)/([^']*)'", text)
    if group:
        return f"{group[1]}: unknown {group[2]!r}{nearest(group[2], groups.names(group[1], own))}"
    cause = error.__cause__ or error
    line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is no setting; expected key=value ({_parser_says(cause)})"
    in_file = _in_file(error)
    if in_file:
        return in_file
    ambiguous = re.search(r"Ambiguous value for argument '([^=']+)=(.*)'", text)
    if ambiguous:
        key, value = ambiguous[1], ambiguous[2]
        return f"{key}: a list needs quotes and brackets, '{key}=[{value}]'; to sweep over the values, add --multirun"
    unknown = re.search(r"Could not override '([^']+)'|Could not delete from config\. '([^']+)' does not exist", text)
    if unknown:
        key = unknown[1] or unknown[2]
        if unknown[2] in schema_keys():  # Hydra cannot delete what has no value
            return f"~{key}: cannot be used; {key} has no value to take away"
        if key == groups.EXPERIMENT:
            return f"{key}: is added to the other groups: +{key}=NAME{nearest('', groups.names(key, own))}"
        return f"unknown key {key!r}" + ("" if key.startswith("hydra.") else nearest_key(key))
    key = getattr(cause, "full_key", None) if isinstance(cause, OmegaConfBaseException) else None
    if key and (wrong := _wrong_type(line)):
        return f"{key}: {wrong}"
    return f"{_offender(overrides, own)}: cannot be used ({line})"


def _in_file(error: Exception) -> str | None:
    """What is wrong within a YAML file of a group; None where that is not what is wrong."""
    mark = getattr(error, "problem_mark", None)  # YAML's own errors know the place
    if mark is not None:
        return f"{mark.name}, line {mark.line + 1}: no YAML ({getattr(error, 'problem', error)})"
    found = re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)", str(error))
    if not found:
        return None
    file, line = f"{found[1]}.yaml", found[2]
    at = re.search(r"full_key: (\S+)", str(error))
    if at and re.match(r"Key '.*' not in ", line):
        return f"{file}: unknown key {at[1]!r}{nearest_key(at[1])}"
    return f"{file}: {at[1] + ': ' if at else ''}{_wrong_type(line) or f'cannot be used ({line})'}"


def _wrong_type(line: str) -> str | None:
    found = re.match(r"Value (.*) of type '.*' could not be converted to (\w+)", line)
    return f"expected {_EXPECTED.get(found[2], found[2])}, got {found[1]}" if found else None


def _parser_says(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    useful = [line for line in lines if line and not line.startswith(("Error parsing", "See https", "^"))]
    return useful[0] if useful else "it cannot be parsed"


def _offender(overrides: list[str], own: Path | None = None) -> str:
    """The first override that cannot be composed with those before it."""
    for count in range(1, len(overrides) + 1):
        try:
            typed(_composed(overrides[:count], own))
        except ConfigError:
            continue
        except Exception:
            return overrides[count - 1]
    return "the configuration"


def _program() -> str:
    """What the command line begins with."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name


def _say(message: str) -> None:
    print("error: " + " ".join(line.strip() for line in message.strip().splitlines()), file=sys.stderr)


def _fail(message: str) -> NoReturn:
    _say(message)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    console()
