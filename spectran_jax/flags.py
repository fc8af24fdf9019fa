"""Command-line flags, generated from the configuration's dataclasses, and the main of an experiment.

A flag's name, default, choices and help are those of the dataclass field, so that flags, Python API, `--help`
and config.json cannot drift.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from absl import app, flags

from spectran_jax.config import FILES, Config, fields
from spectran_jax.errors import NOT_MOUNTED, InputError, exit_with_message, leave

_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}


def define_config_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each field of `Config`, and `--config`."""
    define_path("config", "Read the configuration from this config.json; other flags override it.", flag_values)
    for _, field in fields():
        choices, default = field.metadata["choices"], cast(Any, field.default)
        if choices:
            flags.DEFINE_enum(field.name, default, choices, field.metadata["help"], flag_values=flag_values)
        else:
            _DEFINE[type(default)](field.name, default, field.metadata["help"], flag_values=flag_values)


class _PathParser(flags.ArgumentParser[Path | None]):
    """A file or folder, whose `~` is the home folder: shells leave it alone behind `--name=`."""

    def parse(self, argument: str) -> Path | None:
        if "://" in argument:
            raise ValueError(f"{argument}: {NOT_MOUNTED}")
        try:
            return Path(argument).expanduser() if argument else None
        except RuntimeError as error:  # ~NAME of nobody
            raise ValueError(f"{argument}: {error}") from None

    def flag_type(self) -> str:
        return "path"


def define_path(name: str, help: str, flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder[Path | None]:
    """Defines a flag that names a file or folder; its value is a `Path`, None where the flag is not given or empty."""
    return flags.DEFINE(_PathParser(), name, None, help, flag_values, flags.ArgumentSerializer())


def define_files_of_run(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, flags.FlagHolder[Path | None]]:
    """Defines flags that say where the files of a trained run lie now, and where to keep caches, by field."""
    help = "Where the run's {} file lies now, with the content and the ending that it had; where it was if empty."
    found = {name: define_path(name, help.format(name), flag_values) for name in FILES}
    caches = "Where prepared data and caches live here; where the run had them if empty."
    return found | {"data_dir": define_path("data_dir", caches, flag_values)}


def define_cold_scale(flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder[float | None]:
    """Defines the flag that shows cold items of a trained run more or less often than the run did."""
    return flags.DEFINE_float(
        "cold_scale",
        None,
        "Factor of the scores of items unseen in training, for the same parameters: above 1 they are shown more often. "
        "As the run had it if not given; not for runs with bce or gbce.",
        flag_values=flag_values,
    )


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Config:
    """The configuration that the parsed flags say: `--config` first, then each flag given.

    Raises:
      InputError: where `--config` is missing, is no JSON object or holds a wrong field.
    """
    config = Config()
    if flag_values["config"].value:
        config = read_config(flag_values["config"].value)
    given = {f.name: flag_values[f.name].value for _, f in fields() if flag_values[f.name].present}
    return config.replace(**given)


def read_config(path: Path) -> Config:
    """Reads a config.json.

    Raises:
      InputError: where the file is missing, is no JSON object or holds a wrong field.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON configuration: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a configuration is a JSON object of sections, got {type(values).__name__}.")
    return Config.from_dict(values, source=str(path))


def _defined(flag_values: flags.FlagValues) -> list[str]:
    """The flags of an experiment in the order of their definition, without those that libraries bring."""
    module = flag_values.find_module_defining_flag
    return [name for name in flag_values if not str(module(name)).startswith(("absl.", "orbax."))]


def help_text(synopsis: str, flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """The text of `--help`: the experiment's synopsis, its own flags, then every configuration flag by section."""
    lines = [textwrap.dedent(synopsis).strip(), ""]

    def add(name: str) -> None:
        flag = flag_values[name]
        choices = getattr(flag.parser, "enum_values", None)
        kind = "|".join(choices) if choices else ("" if flag.boolean else flag.flag_type().upper())
        value = flag.default
        if isinstance(value, list):
            kind, value = "STRING" if isinstance(flag, flags.MultiFlag) else "A,B,...", ",".join(value)
        told = (flag.help or "").removeprefix(f"<{kind}>: ")  # absl puts the choices there, too
        if flag.boolean:
            head, default = f"--[no]{name}", " (default true)" if value else ""
        else:
            head, default = f"--{name}={kind}", "" if value is None or value == "" else f" (default {value})"
        lines.append(f"  {head}")
        lines.extend(textwrap.wrap(told + default, 96, initial_indent="      ", subsequent_indent="      "))

    configured = {field.name for _, field in fields()} if "config" in flag_values else set()
    if own := [name for name in _defined(flag_values) if name not in configured]:
        lines.append("This command:")
        for name in own:
            add(name)
        lines.append("")
    if "config" in flag_values:
        sections = {s.name: s for s in dataclasses.fields(Config)}
        current = ""
        for section, field in fields():
            if section != current:
                current = section
                doc = type(getattr(Config(), sections[section].name)).__doc__ or ""
                lines += ["", f"{section.capitalize()}: {doc.strip()}"]
            add(field.name)
    return "\n".join(lines) + "\n"


def _meant(name: str, known: Sequence[str]) -> list[str]:
    """The flags that an unknown one may stand for: of which it is the end (encoder) or the initials (lr), else the one
    that is most like it."""
    short = [flag for flag in known if flag.endswith(f"_{name}") or "".join(w[0] for w in flag.split("_")) == name]
    return short or difflib.get_close_matches(name, known, n=1, cutoff=0.7)


def parsed(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses a command line; gives what is left, the name of the program alone.

    Raises:
      InputError: for an unknown flag, a wrong or missing value, or what is no flag.
    """
    try:
        rest: list[str] = flag_values(list(argv))
    except flags.UnrecognizedFlagError as error:
        near = _meant(error.flagname, _defined(flag_values))
        hint = f" Did you mean {' or '.join(f'--{name}' for name in near)}?" if near else " See --help."
        raise InputError(f"Unknown flag --{error.flagname}.{hint}") from None
    except flags.IllegalFlagValueError as error:
        raise InputError(_wrong_value(error, flag_values)) from None
    except (flags.Error, ValueError) as error:  # --noNAME=value is the latter
        raise InputError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise InputError(f"Unexpected argument {rest[1]!r}: flags are written --name=value. See --help.")
    return rest


def _wrong_value(error: flags.IllegalFlagValueError, flag_values: flags.FlagValues) -> str:
    """What is said of a value that a flag can't have, without Python's words for what is no number."""
    told = " ".join(str(error).split()).removeprefix("flag ")
    flag = flag_values[told.removeprefix("--").partition("=")[0]]
    wanted = "true or false" if flag.boolean else getattr(flag.parser, "syntactic_help", "")
    if not wanted:
        return told
    given = told.removesuffix(" ".join(f": {error.__context__}".split()))
    return f"{given} must be {wanted}."


def run(main: Callable[[], None], synopsis: str) -> None:
    """Parses the flags, answers `--help`, runs `main` and turns errors for people into their exit status.

    Args:
      main: the experiment; reads the flags it needs.
      synopsis: what `--help` prints first; the experiment's own flags follow in the order of their definition.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        if any(a in ("--help", "-h", "-help", "--helpfull", "--helpshort") for a in argv[1:]):
            flags.FLAGS.mark_as_parsed()
            exit_with_message(lambda: print(help_text(synopsis), end="", flush=True))
            sys.exit(0)
        for argument in argv[1:]:
            if any("\ud800" <= letter <= "\udfff" for letter in argument):  # bytes that Python could not decode
                leave(InputError.exit_status, f"{argument!r} is not UTF-8; name files and folders in UTF-8.")
        try:
            return parsed(argv)
        except InputError as error:
            leave(error.exit_status, str(error))

    def plainly(_: Sequence[str]) -> None:
        _warn_plainly()
        exit_with_message(main)

    app.run(plainly, flags_parser=parse)


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the time: a progress bar puts its own in place and moves out of the way."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def _warn_plainly() -> None:
    """Warnings of this package and of libraries as one plain line each, instead of absl's dated prefix."""
    handler = _Stderr(logging.WARNING)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger().handlers[:] = [handler]
