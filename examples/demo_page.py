"""Writes index.html, a page of what `run.sh` made, in the folder where it is called."""

import json
from html import escape
from pathlib import Path
from typing import Any

PARTS = {
    "composed": "Real defects, cut out and laid onto other normals (`compose`): no training.",
    "shipped": "Defects that the model that ships makes up, on normals of a product that it knows (`synthesize`).",
    "trained": "The same after a short training that started from that model (`train --init`).",
}
MEASURES = {"balanced_accuracy": "balanced accuracy", "mean_ap": "average precision"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
img { max-width: 100%; }
code { background: #eee; padding: 0 .2em; overflow-wrap: anywhere; }
.verdict { font-weight: 600; }
"""


def main() -> None:
    lines = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>What defectgen does</title><style>{STYLE}</style><h1>What defectgen does</h1>",
        "<p>Each sample stands beside the same part with its mask outlined in red. Nothing is left out.</p>",
    ]
    for name, text in PARTS.items():
        command = json.loads(Path(name, "dataset.json").read_text(encoding="utf-8"))["command"]
        lines += [
            f"<h2>{name}</h2><p>{marked(text)}</p><p><code>{escape(command)}</code></p>",
            f'<p><img src="{name}/sheet.jpg" alt="Samples of {name}, with their masks outlined"></p>',
        ]
    report = json.loads(Path("report/report.json").read_text(encoding="utf-8"))
    lines.append("<h2>Do the composed ones help?</h2>")
    lines += [f'<p class="verdict">{escape(line)}</p>' for line in verdicts(report)]
    lines.append(
        '<p>A quick test on a few held-out images: <a href="report/report.html">the whole report</a>.</p></html>'
    )
    Path("index.html").write_text("\n".join(lines) + "\n", encoding="utf-8")


def marked(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def verdicts(report: dict[str, Any]) -> list[str]:
    """A line for each task."""
    lines = []
    for name, dataset in report["downstream"][0]["datasets"].items():
        for task, found in dataset["tasks"].items():
            line = f"{name}, {task}: {found['verdict']}"
            if found.get("low") is not None:
                measure = MEASURES.get(found["decided_by"], found["decided_by"])
                line += f" ({measure} {found['gain']:+.2f}, between {found['low']:+.2f} and {found['high']:+.2f})"
            lines.append(line)
    return lines


if __name__ == "__main__":
    main()
