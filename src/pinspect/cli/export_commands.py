"""The commands that write a version, what made it, or the chat dataset into a new folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")]


def export(
    out: Out,
    version: Annotated[str, typer.Option(help="Number of the version; by default the version with the alias.")] = "",
    alias: Annotated[str, typer.Option(help="Alias of the version.")] = "champion",
    push: Annotated[
        str, typer.Option(metavar="REPO", help="Also upload the folder to this repository of the Hugging Face hub.")
    ] = "",
) -> None:
    """Merge a registered adapter into its base; vLLM and other engines can serve the result."""
    from pinspect.cli.export import export_version
    from pinspect.cli.export import push as push_folder
    from pinspect.registry.settings import load_register_settings

    number = export_version(Path(), load_register_settings(Path()), version or alias, out)
    print(f"version {number} merged into {out}")
    if push:
        print(f"pushed: {push_folder(out, push)}")


def export_dataset(out: Out) -> None:
    """Write the chat dataset with its pictures as Parquet, for `datasets.load_dataset`, TRL and Unsloth."""
    from pinspect.cli.export_dataset import export_dataset as export_chat

    counts = export_chat(Path(), out)
    print(f"{', '.join(f'{count} {split} rows' for split, count in counts.items())} in {out}")
    print(f'next: datasets.load_dataset("{out}")')


def reproduce(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Number or alias of the version.")],
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The folder; by default build/version-N.")] = None,
) -> None:
    """Check out what made a version into a new folder: code, parameters, captures, and data from DVC's cache."""
    from pinspect.registry.lineage import check_out_version
    from pinspect.registry.settings import load_register_settings

    folder = out or Path(f"build/version-{version}")
    number, commit = check_out_version(Path(), load_register_settings(Path()), version, folder)
    print(f"version {number}: commit {commit[:12]} in {folder}")
    print(f"next: cd {folder}, then dvc repro: it finds what has changed since")
