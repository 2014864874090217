"""The commands that write a version or the chat dataset for programs of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")]


def export(
    out: Out,
    version: Annotated[str, typer.Option(help="Number of the version; by default the version with the alias.")] = "",
    alias: Annotated[str, typer.Option(help="Alias of the version.")] = "champion",
) -> None:
    """Merge a registered adapter into its base; vLLM and other engines can serve the result."""
    from pinspect.cli.export import export_version
    from pinspect.registry.settings import load_register_settings

    number = export_version(Path(), load_register_settings(Path()), version or alias, out)
    print(f"version {number} merged into {out}")


def export_dataset(out: Out) -> None:
    """Write the chat dataset with its pictures as Parquet, for `datasets.load_dataset`, TRL and Unsloth."""
    from pinspect.cli.export_dataset import export_dataset as export_chat

    counts = export_chat(Path(), out)
    print(f"{', '.join(f'{count} {split} rows' for split, count in counts.items())} in {out}")
    print(f'next: datasets.load_dataset("{out}")')
