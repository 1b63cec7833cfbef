"""Pages in a real browser, where there is one; tests that need it are skipped elsewhere."""

import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SETTINGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--virtual-time-budget=2000",
    "--dump-dom",
)


def after(page: Path, script: str, *, width: int = 1000, height: int = 800) -> str:
    """The text that a script returns once the page is loaded, in a window of this size. Errors on the page fail."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip("no browser")
    text = page.read_text(encoding="utf-8")
    first, last = (
        "<script>window.troubles = []; addEventListener('error', event => troubles.push(event.message));</script>",
        "<script>addEventListener('load', () => { const said = document.createElement('pre'); said.id = 'said'; "
        f"try {{ said.textContent = (() => {{ {script} }})(); }} catch (error) {{ troubles.push(String(error)); }} "
        "said.dataset.troubles = troubles.join('; '); document.body.append(said); });</script>",
    )
    assert text.count("</html>") == 1
    copy = page.with_name("driven.html")
    copy.write_text(
        text.replace("<style>", f"{first}<style>", 1).replace("</html>", f"{last}</html>"), encoding="utf-8"
    )
    profile = page.with_name("profile")
    command = [program, *_SETTINGS, f"--window-size={width},{height}", f"--user-data-dir={profile}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    copy.unlink()
    head, _, said = done.stdout.partition('<pre id="said" data-troubles="')
    assert said, head[-2000:]
    troubles, _, rest = said.partition('">')
    assert not troubles, unescape(troubles)
    return unescape(rest.partition("</pre>")[0])
