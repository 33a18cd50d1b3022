"""The `udaseg recipes` commands: list, print and copy the shipped recipes."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.errors import UsageError
from udaseg.text import printable

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name from `udaseg recipes ls`.", show_default=False)
]
recipes_app = typer.Typer(no_args_is_help=True, help="List, show or copy the shipped recipes.")


@recipes_app.command("ls")
def show_recipes() -> None:
    """List the shipped recipes."""
    import udaseg

    entries = udaseg.list_recipes()
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        typer.echo(printable(f"{entry.name:{width}}  {entry.summary}".rstrip()))


@recipes_app.command("cat")
def show_recipe(name: Name) -> None:
    """Print a recipe."""
    import udaseg

    typer.echo(printable(udaseg.find_recipe(name).read_text(encoding="utf-8")), nl=False)


@recipes_app.command("cp")
def copy_recipe(
    name: Name,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="New file, or folder to copy into.")
    ] = Path(),
) -> None:
    """Copy a recipe to edit it."""
    import udaseg

    path = udaseg.find_recipe(name)
    copy = destination / path.name if destination.is_dir() else destination
    try:
        with copy.open("xb") as file:
            file.write(path.read_bytes())
    except FileExistsError as error:
        raise UsageError(f"{copy}: already exists; choose another file name") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{copy.parent}: no such folder; create it first") from error
    typer.echo(printable(str(copy)))


@recipes_app.command("schema")
def show_schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Describe every key on a page instead.")
    ] = False,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    import json

    import udaseg

    if markdown:
        typer.echo(printable(udaseg.recipe_reference()), nl=False)
    else:
        typer.echo(printable(json.dumps(udaseg.recipe_schema(), indent=2, ensure_ascii=False)))
