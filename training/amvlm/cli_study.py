"""``amvlm structure`` and ``amvlm caption``: what a study calls things, and what its reports say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from amvlm import console
from amvlm.errors import UserError

structures = typer.Typer(help="Structures of a study: add, rename, alias, colour, list.", no_args_is_help=True)
captions = typer.Typer(help="Reports (captions) of cases: set, import, list.", no_args_is_help=True)
StoreFolder = Annotated[Path, typer.Argument(help="the study's folder", show_default=False)]
Name = Annotated[str, typer.Argument(help="the structure, for example liver", show_default=False)]
Laterality = Annotated[Literal["patient", "image"], typer.Option(help="whose left and right the words mean")]
OfStructure = Annotated[str | None, typer.Option("--structure", help="of this structure alone")]


@structures.command()
def add(
    store: StoreFolder,
    name: Name,
    alias: Annotated[list[str] | None, typer.Option(help="a further name; may be repeated")] = None,
    colour: Annotated[str | None, typer.Option(help="for example #31a354")] = None,
) -> None:
    """Add a structure to a study, so that it can be labelled."""
    from amvlm.store import LabelStore

    opened = LabelStore(store)
    if any(structure.name == " ".join(name.split()) for structure in opened.structures()):
        raise UserError(f"the study has a structure {name[:60]!r} already", remedy="Use: amvlm structure alias.")
    opened.add_structure(name)
    if alias:
        opened.set_aliases(name, alias)
    if colour:
        opened.set_colour(name, colour)
    console.result(f"Added {' '.join(name.split())}.")


@structures.command()
def rename(
    store: StoreFolder, name: Name, new: Annotated[str, typer.Argument(help="its new name", show_default=False)]
) -> None:
    """Rename a structure; its labels go along, and the old name stays an alias."""
    from amvlm.store import LabelStore

    LabelStore(store).rename_structure(name, new)
    console.result(f"{name} is now {' '.join(new.split())}; the old name stays an alias.")


@structures.command()
def alias(
    store: StoreFolder,
    name: Name,
    names: Annotated[list[str], typer.Argument(help="further names", show_default=False)],
    remove: Annotated[bool, typer.Option("--remove", help="remove them instead")] = False,
) -> None:
    """Add further names of a structure, which prompts may use; or remove some."""
    from amvlm.store import LabelStore

    opened = LabelStore(store)
    opened.set_aliases(name, () if remove else names, names if remove else ())
    own = next(structure for structure in opened.structures() if structure.name == " ".join(name.split()))
    console.result(f"{own.name}: {', '.join(own.aliases) or 'no aliases'}")


@structures.command()
def colour(
    store: StoreFolder, name: Name, value: Annotated[str, typer.Argument(help="#rrggbb", show_default=False)]
) -> None:
    """Change the colour in which a structure is drawn."""
    from amvlm.store import LabelStore

    LabelStore(store).set_colour(name, value)
    console.result(f"{name}: {value}")


@structures.command("list")
def list_structures(store: StoreFolder) -> None:
    """Every structure with its aliases, colour and number of accepted labels."""
    from amvlm.store import LabelStore

    opened = LabelStore(store)
    states = opened.states()
    rows = [
        (s.name, ", ".join(s.aliases), s.colour,
         sum(state == "accepted" for (_, name), state in states.items() if name == s.name))
        for s in opened.structures()
    ]  # fmt: skip
    console.table("Structures", ("name", "aliases", "colour", "accepted"), rows, left=("name", "aliases", "colour"))


@captions.command("set")
def set_report(
    store: StoreFolder,
    case: Annotated[str, typer.Argument(help="for example case-00001", show_default=False)],
    text: Annotated[str, typer.Argument(help="its words", show_default=False)] = "",
    structure: OfStructure = None,
    laterality: Laterality = "patient",
    remove: Annotated[bool, typer.Option("--remove", help="remove the report")] = False,
) -> None:
    """Set the report of a case; it replaces the one that is there."""
    from amvlm.exchange import checked_report
    from amvlm.store import LabelStore

    words = [] if remove else [checked_report(text, laterality)]
    LabelStore(store).set_captions({case: words}, structure)
    console.result(f"{case}: {words[0] if words else 'no report'}")


@captions.command("import")
def import_table(
    store: StoreFolder,
    table: Annotated[Path, typer.Argument(help="csv, xlsx or json: Image, Description", show_default=False)],
    structure: OfStructure = None,
    laterality: Laterality = "patient",
) -> None:
    """Set the reports of cases that are in the study; a row names a case by its id or its scan's file name."""
    from amvlm.exchange import import_reports
    from amvlm.store import LabelStore
    from amvlm.store.names import original_names

    opened = LabelStore(store)
    found = import_reports(opened, table, original_names(opened.index.store_id()), structure, laterality)
    console.result(f"{len(found.set)} reports set.")
    for keys, why in ((found.unknown, "name no case of this study"), (found.doubtful, "name several cases")):
        if keys:
            shown = ", ".join(key[:40] for key in keys[:5])
            console.say(f"{len(keys)} rows {why}: {shown}{', …' if len(keys) > 5 else ''}", "left out")


@captions.command("list")
def list_reports(store: StoreFolder) -> None:
    """What the reports say, in the patient's sides."""
    from amvlm.store import LabelStore

    known = LabelStore(store).captions()
    rows = [(case_id, name or "", text) for case_id, own in sorted(known.items()) for name, text in own]
    console.table("Reports", ("case", "structure", "text"), rows, left=("case", "structure", "text"))
