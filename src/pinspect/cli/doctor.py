"""The tables of `pinspect doctor`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

READY, NOT_READY = 0, 2  # exit codes


def print_report(report: dict[str, Any]) -> None:
    """Print the report of `pinspect.model.machine.machine_report` as tables.

    Args:
        report: The facts about this machine.
    """
    console = Console(highlight=False)
    cpu = report["cpu"]
    bfloat16 = "computes bfloat16" if cpu["bfloat16"] else "no bfloat16: computes in float32"
    cards = [f"{card['name']}, {card['free']:.1f} of {card['memory']:.1f} GB free" for card in report["cards"]]
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in (
        ("Python", f"{report['python']}, torch {report['torch']}"),
        ("System", report["system"]),
        ("CPU", f"{cpu['cores']} cores, {cpu['threads']} threads for torch, {bfloat16}"),
        ("Memory", f"{report['memory']['free']:.1f} of {report['memory']['total']:.1f} GB free"),
        ("Disk", f"{report['disk']['free']:.1f} GB free"),
        ("GPU", "; ".join(cards) or "no NVIDIA GPU"),
        ("Backends", ", ".join(f"{name} {why}" if why else f"{name}: yes" for name, why in report["backends"].items())),
        ("Versions", _versions_line(report)),
    ):
        facts.add_row(name, text)
    console.print(facts)
    table = Table(
        "family",
        "answer",
        "train",
        "train in 4 bits",
        "4 bits",
        title="Memory in GB, estimated",
        title_justify="left",
    )
    for family in report["families"]:
        cells = [
            f"{family['needs'][name]:.1f} {'fits' if family['fits'][name] else 'no'}"
            for name in ("answer", "train", "train_4bit")
        ]
        table.add_row(family["name"], *cells, "auto" if family["four_bit"] else "on demand")
    console.print(table)
    for obstacle in report["obstacles"]:
        console.print(obstacle, soft_wrap=True)
    if not report["obstacles"]:
        console.print("Ready: the chosen model can run on this machine.")


def _versions_line(report: dict[str, Any]) -> str:
    if report["lock"] is None:
        return "no lock file to compare with"
    differences = [
        f"{entry['name']} {entry['installed'] or 'missing'} instead of {entry['locked']}"
        for entry in report["versions"]
    ]
    return f"differ from {report['lock']}: {', '.join(differences)}" if differences else f"as in {report['lock']}"
