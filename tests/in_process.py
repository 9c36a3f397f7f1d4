"The command in the process of the tests."

from typer.testing import CliRunner

from dra_nb.cli.main import app
from dra_nb.core import DraError


def call(*args):
    "Run a command in this process: status, output, error output; 2 and the message where it is refused, as `main` does"
    result = CliRunner().invoke(app, list(map(str, args)))
    if isinstance(result.exception, DraError):
        return 2, result.stdout, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
