"""What the commands share: exit codes, one-line errors, settings from flags. Loads nothing slow."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click import get_current_context
from click.exceptions import Exit

from converters.labels import FormatError, printable
from converters.project import COCO, DLC, PACKAGE, SLEAP, format_of, is_project
from smp_plugin.config import Config, forget_projects, preset, read_config, set_value
from smp_plugin.progress import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

FILE = click.Path(path_type=Path)  # or a folder
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}  # how each command shows its own
UNNAMED = {**HELP, "allow_extra_args": True}  # of commands that refuse them in words of their own: `refuse_unnamed`
PROJECTS = {"slp": (SLEAP, PACKAGE), "dlc": (DLC,), "coco": (COCO,)}  # options for labelled projects -> what they take
DONE, BUG, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
# Errors that say something about the machine, and not about this program.
MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EIO, errno.EFBIG}
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass
class State:
    """What a running command leaves for its wrapper: where it reported to."""

    reporter: Reporter = field(default_factory=Reporter)


def run(command: click.Command, argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 done, 2 bad input or usage, 1 a bug, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).

    Bad input is one red line on stderr. After a bug, the traceback lies in a file, and stderr says where.
    """
    name = str(command.name)
    arguments = list(sys.argv[1:] if argv is None else argv)
    state = State()
    _hush()
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # read when torch is loaded: what Apple's GPUs lack, the CPU computes
    terminated = threading.Event()
    try:
        with contextlib.suppress(Exit), _terminable(terminated):
            # Without arguments of its own, click reads the command line, and on Windows, whose shells don't, expands *.mp4 in it.
            code = command.main(None if argv is None else arguments, prog_name=name, standalone_mode=False, obj=state)
            return code if isinstance(code, int) else DONE
        return DONE
    except click.ClickException as error:
        return _fail(state, name, BAD_INPUT, error, f"{error.format_message()} (`{name} --help` lists the options.)")
    except FormatError as error:
        return _fail(state, name, BAD_INPUT, error, str(error))
    except (KeyboardInterrupt, click.Abort):
        how = "terminated" if terminated.is_set() else "interrupted"
        click.secho(f"\n{name}: {how}; everything finished so far is kept.", fg="yellow", err=True)
        return TERMINATED if terminated.is_set() else INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno not in MACHINE:
            return _fail(state, name, BUG, error, _apology(state, name, arguments))
        what = f"{error.filename or 'a file'} could not be written or read ({error.strerror})"
        return _fail(state, name, BAD_INPUT, error, f"{what}; check the space on the disk and the permissions of its folder.")
    except Exception as error:
        return _fail(state, name, BUG, error, _apology(state, name, arguments))


@contextlib.contextmanager
def _terminable(terminated: threading.Event) -> Iterator[None]:
    """SIGTERM, which clusters send some time before they kill, does what Ctrl-C does, even where Ctrl-C is switched off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ctrl_c = signal.getsignal(signal.SIGINT)
    if ctrl_c is signal.SIG_DFL:  # from `smp_plugin.cli`, while the command was loaded
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop(_: int, frame: FrameType | None) -> None:
        terminated.set()
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGTERM, frame)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if ctrl_c is signal.SIG_DFL:
            signal.signal(signal.SIGINT, ctrl_c)


def _fail(state: State, name: str, code: int, error: Exception, text: str) -> int:
    sentence = printable(" ".join(text.split()))
    click.secho(f"{name}: {sentence}", fg="red", err=True)
    if state.reporter.json:
        import json

        print(json.dumps({"error": True, "type": type(error).__name__, "message": sentence}), flush=True)
    return code


def _apology(state: State, name: str, arguments: list[str]) -> str:
    """Saves the traceback beside the log, else in the current folder."""
    folder = state.reporter.log.parent if state.reporter.log else Path.cwd()
    path = folder / f"{name}-error.txt"
    command = shlex.join([name, *arguments])
    last = traceback.format_exc().strip().splitlines()[-1]
    try:
        path.write_text(f"{command}\n\n{traceback.format_exc()}", encoding="utf-8")
    except OSError:
        return f"sorry, this is a bug: {last}. Please report it with this command: {command}"
    return f"sorry, this is a bug: {last}. The details are in {path}; please report it with that file and this command: {command}"


def _hush() -> None:
    """Silence other packages' warnings, here and in worker processes. For commands only: a library's user keeps them."""
    import logging

    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for logger in (
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "pytorch_lightning",
        "torch",
        "hdmf",
        "pynwb",
        "matplotlib",
        "libav",
    ):
        logging.getLogger(logger).setLevel(logging.ERROR)


def existing(path: Path) -> Path:
    """The path, or a FormatError: said before anything slow is loaded."""
    if not path.exists():
        raise FormatError(f"{path}: no such file or folder.")
    return path


def refuse_unnamed() -> None:
    """UsageError where the command is given a file without an option before it; names the option that the file's kind needs."""
    if not (arguments := get_current_context().args):
        return
    path = Path(arguments[0])
    kind = format_of(path) if is_project(path) else None
    flag = next((flag for flag, kinds in PROJECTS.items() if kind in kinds), None)
    remedy = f"write --{flag} {shlex.quote(arguments[0])}" if flag else "a labelled project is named with --slp, --dlc or --coco"
    raise click.UsageError(f"{arguments[0]} has no option before it; {remedy}.")


def device_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--device``."""
    return click.option("--device", metavar="NAME", callback=_device, help="auto | cpu | cuda[:i] | mps")(function)


def _device(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not DEVICE.fullmatch(value):
        raise click.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:0, mps.", context, parameter)
    return value


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--quiet`` and ``--json``."""
    function = click.option("--json", "as_json", is_flag=True, help="Progress as JSON lines on stdout.")(function)
    return click.option("--quiet", is_flag=True, help="Nothing but warnings.")(function)


def validation(text: str | None) -> tuple[Path | None, float | None]:
    """``--val``: a file, or a share of the labelled frames."""
    if text is None:
        return None, None
    try:
        share = float(text)
    except ValueError:
        if not Path(text).exists():
            raise FormatError(f"--val {text}: no such file, and no share of the labelled frames; write a share as 0.2.") from None
        return Path(text), None
    if not 0 <= share < 1:
        raise FormatError(f"--val {text}: a share of the labelled frames is at least 0 and below 1.")
    return None, share


def key_values(sets: Sequence[str]) -> dict[str, str]:
    """``--set section.name=value`` texts as a table."""
    table = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise FormatError(f"--set {text}: write it as section.name=value, for example --set train.lr=0.0005.")
        table[key.strip()] = value.strip()
    return table


def build_config(
    preset_name: str, config_file: Path | None, sets: Sequence[str], flags: dict[str, object], device: str, other_projects: bool
) -> tuple[Config, list[str]]:
    """Settings, and sentences saying where they come from. A flag beats ``--set``, that beats the file, and that beats the preset.

    Args:
        preset_name: auto, small, gpu or paper.
        config_file: YAML, or None.
        sets: ``section.name=value`` texts.
        flags: setting -> value; None where the flag was not given.
        device: as asked for; decides the preset ``auto``.
        other_projects: than those that the file may name are learnt from, so what belongs to these is left out.
    """
    cuda = device.startswith("cuda")
    if preset_name == "auto" and (cuda or device == "auto"):
        from smp_plugin.devices import choose_device

        cuda = choose_device(device)[0].type == "cuda"
    config, reason = preset(preset_name, cuda)
    reasons = [reason]
    if config_file is not None:
        alone = read_config(config_file)
        read_config(config_file, config)
        if config != alone:
            reasons.append(f"settings of {config_file}, which beat the preset's")
        else:
            named = f", to which the preset {preset_name} adds nothing" if preset_name != "auto" else ""
            reasons = [f"settings of {config_file}{named}"]
        if other_projects:
            forget_projects(config)
    for key, value in key_values(sets).items():
        set_value(config, key, value)
    for key, flag in flags.items():
        if flag is not None:
            set_value(config, key, flag, "--" + key.partition(".")[2].replace("_", "-"))
    return config, reasons
