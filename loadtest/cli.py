"""The command line of the load generator: `python -m loadtest ...`.

Each subcommand is written in a module of its own and only registered here, one line each.
"""

from __future__ import annotations

import typer

from loadtest import (
    chaos_commands,
    commands,
    duel_command,
    endure_commands,
    routing_commands,
    scale_commands,
    simulate,
)
from loadtest.simworker.command import worker

app = typer.Typer(name="loadtest", no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def loadtest() -> None:
    """Load generator, simulated worker, simulated fleet and benches."""


commands.register(app)
duel_command.register(app)
simulate.register(app)
routing_commands.register(app)
chaos_commands.register(app)
scale_commands.register(app)
endure_commands.register(app)
app.command()(worker)


def main() -> None:
    app()
