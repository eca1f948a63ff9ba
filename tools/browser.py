"""ComfyUI's real frontend in a Chromium without a window, for programs and tests that need what only it can do."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from .install import Problem

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 180_000  # milliseconds that a start or a prompt may take on a busy machine
SETTINGS = {"Comfy.TutorialCompleted": True}  # else the first visit opens a dialog over everything

READY = "() => window.LiteGraph?.registered_node_types.KSampler && window.app?.graph"
MISSING = """() => [app.graph, ...app.graph.subgraphs.values()].flatMap(graph => graph.nodes)
    .filter(node => !(node.type in LiteGraph.registered_node_types) && !app.graph.subgraphs.has(node.type))
    .map(node => [String(node.id), node.type, node.title])"""
WATCH = """() => {
    window.ended = null
    app.lastNodeErrors = null
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, event => { window.ended ??= {kind, ...event.detail} }, {once: true})
}"""
ENDED = "() => window.ended ?? (app.lastNodeErrors && {kind: 'rejected', node_errors: app.lastNodeErrors})"


def find_chromium():
    """The path of a Chromium, and that playwright is there to drive it."""
    try:
        from playwright.sync_api import sync_playwright  # noqa: F401
    except ImportError as error:
        raise Problem("This needs playwright: `.venv/bin/python -m pip install playwright` (make test brings it).") from error
    given = os.environ.get("CHROMIUM")
    if given and not shutil.which(given):
        raise Problem(f"CHROMIUM={given} is no program: give the path of a Chromium or Chrome, or leave CHROMIUM out.")
    found = given or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise Problem("This needs Chromium: `apt-get install chromium` on Debian, or any Chromium or Chrome with "
                      "CHROMIUM=/path/to/it.")
    return found


class Frontend:
    """One open page. ``complaints`` are the errors and warnings of its console, as (text, URL of what said it)."""

    def __init__(self, page):
        self.page, self.complaints = page, []
        page.on("console", self._console_said)
        page.on("pageerror", lambda error: self.complaints.append((str(error), error.stack)))

    def _console_said(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append((message.text, message.location["url"]))

    def evaluate(self, script, argument=None):
        """What a JavaScript function returns, as JSON would carry it."""
        from playwright.sync_api import Error

        try:
            answer = self.page.evaluate(f"async argument => JSON.stringify(await ({script})(argument))", argument)
        except Error as error:
            raise Problem(f"ComfyUI's frontend failed: {error.message.splitlines()[0]}") from error
        return None if answer is None else json.loads(answer)

    def load(self, workflow):
        """Show a workflow: a file or its content, in the browser's format or in API format."""
        if not isinstance(workflow, dict):
            workflow = json.loads(Path(workflow).read_text("utf-8"))
        loader = "loadGraphData" if "nodes" in workflow else "loadApiJson"
        self.evaluate(f"async workflow => {{ await app.{loader}(workflow, 'workflow') }}", workflow)

    def missing_nodes(self):
        """(id, class, title) of each node of the graph that this ComfyUI does not know."""
        return [tuple(node) for node in self.evaluate(MISSING)]

    def to_api(self):
        return self.evaluate("async () => (await app.graphToPrompt()).output")

    def to_ui(self):
        return self.evaluate("() => app.graph.serialize()")

    def run_and_wait(self, start=None):
        """Queue the graph, or do what ``start`` does to queue it; returns ComfyUI's event at the end, with its ``kind``."""
        self.evaluate(WATCH)
        if start is None:
            self.evaluate("async () => { await app.queuePrompt(0) }")
        else:
            start()
        return self.page.wait_for_function(ENDED).json_value()

    def screenshot(self, file):
        self.page.screenshot(path=file)


@contextlib.contextmanager
def open_frontend(url):
    """Yield a Frontend on the server at ``url``. It reads and changes no settings there, and no other address at all."""
    program = find_chromium()
    url = url if "://" in url else f"http://{url}"
    from playwright.sync_api import Error, sync_playwright

    def settings(route):
        route.fulfill(json=SETTINGS) if route.request.method == "GET" else route.fulfill(status=200)

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        except Error as error:
            raise Problem(f"{program} did not start:\n{error}") from error
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.route(lambda address: not address.startswith((url, "data:", "blob:")), lambda route: route.abort())
        page.route("**/api/settings", settings)
        frontend = Frontend(page)
        try:
            page.goto(url)
            page.wait_for_function(READY)
        except Error as error:
            raise Problem(f"No frontend of ComfyUI answers at {url}: {error.message.splitlines()[0]}") from error
        yield frontend
        browser.close()
