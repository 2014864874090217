"""Ways to spoil a row of the chat dataset, each so that it breaks a rule of the answer checks."""

import re


def answer(row: dict, text: object) -> None:
    """Set the expected answer of `row` to `text`, in its messages too."""
    row["answer"] = text
    row["messages"][-1]["content"][0]["text"] = text


def replace(row: dict, old: str, new: str) -> None:
    assert old in row["answer"]
    answer(row, row["answer"].replace(old, new))


def swap_view(row: dict) -> None:
    replace(row, row["view"], "DST" if row["view"] == "RAW" else "RAW")


def drop_image(row: dict) -> None:
    row["images"].pop()


def drop_image_and_placeholder(row: dict) -> None:
    row["images"].pop()
    row["messages"][-2]["content"].pop(0)


def spoil_star(row: dict) -> None:
    row["messages"][1]["content"][0]["text"] += " "


def forget_star(row: dict) -> None:
    del row["messages"][:2]


def judge_defective(row: dict) -> None:
    """Turn a passed answer into a well-formed one about the first pin."""
    lines = row["answer"].split("\n")
    ends = {"judgement": "defective", "mode": "bend", "position": "X:1, Y:U"}
    lines[-3:] = [f"{line.removesuffix('passed')}{end}" for line, end in zip(lines[-3:], ends.values(), strict=True)]
    answer(row, "\n".join(lines))


def name_another_mode(row: dict) -> None:
    other = "no pin" if "mode->bend" in row["answer"] else "bend"
    answer(row, re.sub("mode->.*", f"mode->{other}", row["answer"]))


def name_another_pin(row: dict) -> None:
    other = "X:2, Y:U" if "X:1, Y:U" in row["answer"] else "X:1, Y:U"
    answer(row, re.sub("position->.*", f"position->{other}", row["answer"]))
