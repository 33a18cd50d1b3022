"""The `udaseg recipes` commands: list, print and copy the shipped recipes and networks."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.errors import UsageError
from udaseg.text import printable

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name from `udaseg recipes ls`.", show_default=False)
]
recipes_app = typer.Typer(
    no_args_is_help=True, help="List, show or copy the shipped recipes and networks."
)


@recipes_app.command("ls")
def show_recipes() -> None:
    """List the shipped recipes, and the networks for --network."""
    from udaseg.recipe.library import list_networks, list_recipes

    entries = [*list_recipes(), *list_networks()]
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        typer.echo(printable(f"{entry.name:{width}}  {entry.summary}".rstrip()))


@recipes_app.command("cat")
def show_recipe(name: Name) -> None:
    """Print a recipe, or a network file."""
    typer.echo(printable(_find(name).read_text(encoding="utf-8")), nl=False)


@recipes_app.command("cp")
def copy_recipe(
    name: Name,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="New file, or folder to copy into.")
    ] = Path(),
) -> None:
    """Copy a recipe, or a network file, to edit it."""
    path = _find(name)
    copy = destination / path.name if destination.is_dir() else destination
    try:
        with copy.open("xb") as file:
            file.write(path.read_bytes())
    except FileExistsError as error:
        raise UsageError(f"{copy}: already exists; choose another file name") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{copy.parent}: no such folder; create it first") from error
    typer.echo(printable(str(copy)))


def _find(name: str) -> Path:
    """Return the file of a shipped recipe or, if the name begins with `networks/`, of a network."""
    from udaseg.recipe.library import find_network, find_recipe

    return find_network(name) if name.startswith("networks/") else find_recipe(name)


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
