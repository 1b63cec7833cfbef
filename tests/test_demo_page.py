import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples/demo_page.py"


class Page(HTMLParser):
    """The pictures, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_the_sheets_the_commands_and_the_verdicts(tmp_path: Path) -> None:
    for name in ("composed", "shipped", "trained"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text(json.dumps({"command": f"defectgen make <{name}>"}))
        (tmp_path / name / "sheet.jpg").write_bytes(b"")
    tasks = {
        "classification": {
            "verdict": "helps",
            "decided_by": "balanced_accuracy",
            "gain": 0.1,
            "low": 0.02,
            "high": 0.2,
        },
        "segmentation": {"verdict": "no difference", "decided_by": "mean_ap", "gain": 0.0, "low": None, "high": None},
    }
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.html").write_text("")
    report = {"downstream": [{"datasets": {"composed": {"tasks": tasks}}}]}
    (tmp_path / "report/report.json").write_text(json.dumps(report))
    subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, check=True)
    page = Page((tmp_path / "index.html").read_text())
    assert page.links == ["composed/sheet.jpg", "shipped/sheet.jpg", "trained/sheet.jpg", "report/report.html"]
    assert all((tmp_path / link).exists() for link in page.links)
    assert "defectgen make <shipped>" in page.text
    assert "composed, classification: helps (balanced accuracy +0.10, between +0.02 and +0.20)" in page.text
    assert "composed, segmentation: no difference" in page.text
