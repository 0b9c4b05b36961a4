"""``lw-retinanet``: commands, and how errors end them."""

import io
import logging
import sys

import typer

from lw_retinanet import __version__
from lw_retinanet.cli.benchmark import benchmark_command
from lw_retinanet.cli.compare import compare_command
from lw_retinanet.cli.console import PrintableFormatter, say, say_error
from lw_retinanet.cli.convert import convert_command
from lw_retinanet.cli.data import app as data_app
from lw_retinanet.cli.evaluate import evaluate_command
from lw_retinanet.cli.export import export_command
from lw_retinanet.cli.lighten import lighten_command
from lw_retinanet.cli.predict import predict_command
from lw_retinanet.cli.profile import profile_command
from lw_retinanet.cli.quickstart import quickstart_command
from lw_retinanet.cli.report import report_command
from lw_retinanet.cli.selfcheck import selfcheck_command
from lw_retinanet.cli.serve import serve_command
from lw_retinanet.cli.ship import ship_command
from lw_retinanet.cli.tradeoff import tradeoff_command
from lw_retinanet.cli.train import train_command
from lw_retinanet.errors import InputError, LwRetinaNetError
from lw_retinanet.stopping import Stopped, stopping

# One line a mistake: no boxes around messages, no traceback with local variables.
app = typer.Typer(
    name="lw-retinanet",
    help="Your RetinaNet, several times cheaper, with the receipt. Every command has --help; add --debug to see tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("quickstart")(quickstart_command)
app.command("profile")(profile_command)
app.add_typer(data_app, name="data")
app.command("train")(train_command)
app.command("report")(report_command)
app.command("convert")(convert_command)
app.command("lighten")(lighten_command)
app.command("evaluate")(evaluate_command)
app.command("compare")(compare_command)
app.command("predict")(predict_command)
app.command("export")(export_command)
app.command("benchmark")(benchmark_command)
app.command("ship")(ship_command)
app.command("serve")(serve_command)
app.command("tradeoff")(tradeoff_command)
app.command("selfcheck")(selfcheck_command)

INTERRUPTED = 130
# typer carries its own click since 0.20 or so; the class is found by name, so that either serves.
_UsageProblem: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        say(f"lw-retinanet {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed, 2 bad usage or bad input, 130 and 143 after Ctrl-C and SIGTERM."""
    arguments = sys.argv[1:]
    is_debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without Unicode shows names all the same
        sys.stdout.reconfigure(errors="backslashreplace")
    logs = logging.StreamHandler(sys.stderr)
    logs.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.DEBUG if is_debug else logging.INFO, handlers=[logs])
    for chatty in ("matplotlib", "PIL", "filelock", "tensorboard"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with stopping():
        code = _run([argument for argument in arguments if argument != "--debug"], is_debug)
    sys.exit(code)


def _run(arguments: list[str], is_debug: bool) -> int:
    try:
        code = int(app(args=_joined_size(arguments), prog_name="lw-retinanet", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # newer versions of typer make a code of it themselves
            raise KeyboardInterrupt
        return code
    except _UsageProblem as error:
        if is_debug:
            raise
        message = error.format_message().replace("Value error, ", "")  # type: ignore[attr-defined]
        # `no_args_is_help` comes as an error whose message is the help text.
        is_help = type(error).__name__ == "NoArgsIsHelpError"
        if is_help:
            print(message, file=sys.stderr)
        else:
            say_error(f"{message} (see --help)")
        return 2
    except LwRetinaNetError as error:
        if is_debug:
            raise
        say_error(str(error))
        return 2 if isinstance(error, InputError) else 1
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Stopped as stopped:
        print("stopped by a signal", file=sys.stderr)
        return int(str(stopped.code))
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stderr.close()
        return 1
    except Exception as error:
        if is_debug:
            raise
        first = (str(error).strip().splitlines() or ["no message"])[0]
        say_error(f"unexpected {type(error).__name__}: {first}; --debug shows where")
        return 1


def _joined_size(arguments: list[str]) -> list[str]:
    """``--size 600 800`` as one value, since an option takes a fixed number of them."""
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        joined.append(argument)
        if argument == "--size" and len(rest) >= 2 and rest[0].lstrip("-").isdigit() and rest[1].lstrip("-").isdigit():
            joined.append(f"{rest.pop(0)} {rest.pop(0)}")
    return joined


if __name__ == "__main__":
    main()
