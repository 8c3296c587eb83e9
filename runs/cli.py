"""The command line. Commands are imported when they are called, so that ``--help`` answers at once."""

import sys

from cyclopts import App, CycloptsError, UnusedCliTokensError
from rich.console import Console

from neurocoder import __version__
from neurocoder.errors import NeurocoderError

app = App(
    name="neurocoder",
    help="Train, score and study agents whose weights are programs in a memory.",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # main says so
)
_COMMANDS = {
    "train": "Train an agent; ENV is any installed Gymnasium id, e.g. ALE/Pong-v5.",
    "eval": "Play whole episodes with a trained agent and print its raw score.",
    "compare": "Compare runs: learning curves, intervals over seeds, human-normalised scores.",
    "record": "Record episodes: pictures, actions, values, and the programs that act.",
    "watch": "Watch recorded episodes in the browser.",
    "replay": "Check, render or export recorded episodes.",
    "features": "Compute what a frozen encoder makes of a data set, once.",
    "reproduce": "Train what a table or figure of the paper needs, and print ours beside the paper's.",
    "list": "List envs, heads, encoders, recipes, runs or zoo.",
    "bench": "Measure speed and memory on this machine.",
    "doctor": "Check this machine for what slows training down or breaks it.",
}
for _name, _help in _COMMANDS.items():
    _module = "listing" if _name == "list" else "evaluate" if _name == "eval" else _name
    app.command(f"neurocoder.runs.commands.{_module}:{_module}", name=_name, help=_help)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0, 2 after something that the user can mend (one line on stderr), or 1."""
    tokens = sys.argv[1:] if arguments is None else arguments
    try:
        result = app(tokens, exit_on_error=False, print_error=False, console=Console(soft_wrap=False))
        return result if isinstance(result, int) else 0
    except UnusedCliTokensError as error:
        return _report(_left_over(error), 2)
    except CycloptsError as error:
        return _report(str(error), 2)
    except NeurocoderError as error:
        return _report(str(error), error.exit_code)
    except BrokenPipeError:  # `neurocoder list envs | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return _report("interrupted", 130)


def _left_over(error: UnusedCliTokensError) -> str:
    """Return what to say of words that no argument of the command takes, such as the second of ``--presets a3c nature``."""
    words = " ".join(error.unused_tokens or ())
    command = " ".join(("neurocoder", *(error.command_chain or ())))
    return f"unexpected {words!r}: {command} --help tells what it takes; several names of one option are joined by commas, a3c,nature"


def _report(message: str, code: int) -> int:
    one_line = " ".join(message.split()) if code == 2 else message
    print(f"neurocoder: {one_line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
