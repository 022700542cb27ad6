"""Take the screenshots of docs/walkthrough.md from a running platform (`make up`).

It needs Debian's chromium and, in an environment of its own, the package playwright: python docs/take_screenshots.py
"""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DAGSTER, SERVING, REPORTS = "http://127.0.0.1:3000", "http://127.0.0.1:8080", "http://127.0.0.1:8081"
FOLDER = Path(__file__).parent / "images"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = {
    "gate": "/assets/candidate_model?view=checks",
    "candidate": "/assets/candidate_model?view=events",
    "quarantine": "/assets/validated_transactions?view=checks",
    "drift": "/assets/drift_report?view=events",
    "automation": "/automation",
    "runs": "/runs",
}


def main() -> None:
    """Visit every page and keep what is seen."""
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        graph = browser.new_page(viewport={"width": 2200, "height": 1200})
        graph.goto(f"{DAGSTER}/asset-groups")
        graph.wait_for_timeout(7000)
        graph.keyboard.press("Alt+e")  # expand all groups
        graph.wait_for_timeout(4000)
        graph.screenshot(path=FOLDER / "asset-graph.png")
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        for name, path in PAGES.items():
            page.goto(DAGSTER + path)
            page.wait_for_timeout(5000)
            page.screenshot(path=FOLDER / f"{name}.png")
        drift_page(page)
        endpoint_answer(page)
        browser.close()


def drift_page(page: Page) -> None:
    """Evidently's own page of the newest window."""
    home = Path(__file__).parent.parent / ".churn" / "reports"
    newest = max(home.glob("*/drift-*.html"), key=lambda path: path.name)
    page.goto(f"{REPORTS}/{newest.parent.name}/{newest.name}")
    page.wait_for_timeout(5000)
    page.screenshot(path=FOLDER / "evidently.png")


def endpoint_answer(page: Page) -> None:
    """What the endpoint answers when a browser calls it: known, unknown, and bad input."""
    page.goto(f"{SERVING}/openapi.json")
    answers = []
    for body in ({"user_id": "2474"}, {"user_id": "nobody"}, {"user": 1}):
        answer = page.evaluate(
            """async (body) => {
                const headers = {"Content-Type": "application/json"};
                const answer = await fetch("/predict", {method: "POST", headers, body: JSON.stringify(body)});
                return {status: answer.status, body: await answer.json()};
            }""",
            body,
        )
        answers.append(
            f"POST /predict {json.dumps(body)}\n{answer['status']}\n{json.dumps(answer['body'], indent=2)}\n"
        )
    page.evaluate(
        "(text) => { document.body.innerHTML = '<pre></pre>'; document.body.firstChild.innerText = text; }",
        "\n".join(answers),
    )
    page.set_viewport_size({"width": 1100, "height": 760})
    page.screenshot(path=FOLDER / "endpoint.png")


if __name__ == "__main__":
    main()
