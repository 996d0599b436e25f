"""python launch.py sweep=NAME [model=NAME] [data=NAME] [cluster=NAME] [tracker=NAME] [mode=MODE] [key=value ...]

The only Hydra entry. Exit code 0: every trial is recorded; 2: bad input, before any work; 3: some trials failed for good; 130: interrupted, resumable.
"""

from __future__ import annotations

import difflib
import re
import sys

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeps.config import ConfigError, config_folder, register, typed

BAD_INPUT, INTERRUPTED = 2, 130


def main() -> None:
    """Console entry: check the command line first, so that a mistake costs one line and no work."""
    register()
    arguments = sys.argv[1:]
    if not any(a.startswith("-") for a in arguments):
        problem = _problem(arguments)
        if problem:
            _fail(problem)
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_launch)()


def _launch(composed: DictConfig) -> None:
    from circuits.data.sources import DataError
    from circuits.denoisers import ModelError
    from sweeps.records import RunDirectoryError

    try:
        config = typed(composed)
        from sweeps.driver import execute  # torch, diffusers and ray: seconds that a mistyped key need not wait for

        code = execute(config)
    except (ConfigError, DataError, ModelError, RunDirectoryError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code:
        sys.exit(code)


def _problem(overrides: list[str]) -> str | None:
    """What is wrong with the overrides, in one line, or None."""
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            typed(compose("config", overrides=overrides))
    except ConfigError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return _in_one_line(error, overrides)
    finally:
        GlobalHydra.instance().clear()
    return None


def _in_one_line(error: Exception, overrides: list[str]) -> str:
    text = str(error)
    group = re.search(r"In 'config': Could not find '([^/']+)/([^']+)'", text)
    if group:
        return f"{group[1]}: unknown {group[2]!r}{_nearest(group[2], _options(group[1]))}"
    cause = error.__cause__ or error
    line = " ".join(str(cause).split())
    missing = re.search(
        r"Key '([^']+)' is not in struct|Key '([^']+)' not in '[^']+'|Could not override '([^']+)'", text + " " + line
    )
    if missing:
        wanted = next(
            (o.partition("=")[0].lstrip("+~") for o in overrides if (missing[1] or missing[2] or missing[3]) in o), ""
        )
        return f"unknown key {wanted!r}{_nearest(wanted, _keys())}"
    return re.split(r"\s+(?:full_key:|object_type=)", line)[0]


def _nearest(given: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(given, valid, n=1, cutoff=0.4)
    listed = f"; valid: {', '.join(valid)}" if len(valid) <= 12 else ""
    return (f"; did you mean {close[0]!r}?" if close else "") + listed


def _options(group: str) -> list[str]:
    return sorted(p.stem for p in (config_folder() / group).glob("*.yaml"))


def _keys() -> list[str]:
    """Every key of the schema, dotted."""
    from sweeps.config import Config

    def walk(node: DictConfig, prefix: str) -> list[str]:
        keys: list[str] = []
        for key in node:
            name = f"{prefix}{key}"
            keys.append(name)
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                keys += walk(child, f"{name}.")
        return keys

    return walk(OmegaConf.structured(Config), "")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
