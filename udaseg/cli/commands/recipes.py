"""The `udaseg recipes` commands: list, print and copy the shipped recipes and networks."""

from pathlib import Path
from typing import Annotated

import typer

from udaseg.cli.command import Command, Group
from udaseg.cli.options import OutputFormat
from udaseg.display.console import print_json
from udaseg.errors import UsageError
from udaseg.text import printable, shortened, suggestion

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name from `udaseg recipes ls`.", show_default=False)
]
recipes_app = typer.Typer(
    cls=Group, no_args_is_help=True, help="List, show or copy the shipped recipes and networks."
)


@recipes_app.command("ls", cls=Command)
def show_recipes(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER",
            help="List all of one folder, such as gta5_cityscapes or networks.",
            show_default=False,
        ),
    ] = None,
    output_format: OutputFormat = "table",
) -> None:
    """List the folders of recipes with their methods, or the recipes of one folder."""
    from udaseg.recipe.library import list_networks, list_recipes

    folders: dict[str, dict[str, str]] = {}
    for entry in (*list_recipes(), *list_networks()):
        folders.setdefault(entry.folder, {})[entry.method] = entry.summary
    if folder is not None and (folder := folder.rstrip("/")) not in folders:
        raise UsageError(
            f"{shortened(folder)}: no folder of recipes{suggestion(folder, list(folders))}; "
            f"available: {', '.join(folders)}"
        )
    listed = folders if folder is None else {folder: folders[folder]}
    recipes = {f"{name}/{method}": text for name in listed for method, text in listed[name].items()}
    if output_format == "json":
        print_json([{"name": name, "summary": text} for name, text in recipes.items()])
        return
    if folder is None:
        recipes = {f"{name}/": ", ".join(methods) for name, methods in folders.items()}
    width = max(map(len, recipes), default=0)
    for name, text in recipes.items():
        typer.echo(printable(f"{name:{width}}  {text}".rstrip()))
    if folder is None:
        typer.echo("\nA recipe is FOLDER/METHOD; `udaseg recipes ls FOLDER` describes each.")


@recipes_app.command("cat", cls=Command)
def show_recipe(name: Name) -> None:
    """Print a recipe, or a network file."""
    typer.echo(printable(_find(name).read_text(encoding="utf-8")), nl=False)


@recipes_app.command("cp", cls=Command)
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


@recipes_app.command("schema", cls=Command)
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
