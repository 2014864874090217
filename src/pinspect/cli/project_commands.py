"""The commands that make a project for a new line, and bring it to the installed pinspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; it must not exist, or be empty.")],
    rows: Annotated[str, typer.Option(metavar="U,C,D", help="Row letters, from the top.")] = "",
    columns: Annotated[str, typer.Option(metavar="N", help="Number of columns.")] = "",
    shapes: Annotated[str, typer.Option(metavar="CYLN,SQUR", help="Pin shapes.")] = "",
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=DRAW[:DIRECTION]]",
            help="A defect mode, and how the virtual line draws it unless the name is known; repeat for each.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the line and its registered model; by default that of DIR.")] = "",
    registry: Annotated[
        str,
        typer.Option(
            metavar="DIR|URI", help="Registry that lines share: a folder, or an MLflow URI; by default in the project."
        ),
    ] = "",
) -> None:
    """Make a project for a new line, as a git and DVC repository of its own."""
    from pinspect.cli.choices import read_choices
    from pinspect.cli.new import make_project

    answers = {"--rows": rows, "--columns": columns, "--shapes": shapes, "--mode": ",".join(mode or [])}
    choices = read_choices(folder, answers, name, registry)
    remarks = make_project(folder, choices)
    print(f"{folder}: a project for {choices.layout}, {', '.join(choices.shapes)}, {', '.join(choices.drawings)}")
    print(*remarks, sep="\n", end="\n" if remarks else "")
    print(f"next: cd {folder}, then pinspect add DIR")


def update() -> None:
    """Bring a project of `pinspect new` to the installed pinspect; captures, parameters and settings stay."""
    from pinspect.cli.new import update_project

    print(*update_project(Path()), sep="\n")
