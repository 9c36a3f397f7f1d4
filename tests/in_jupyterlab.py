"A JupyterLab server and a headless Chromium beside the tests, driven through the DevTools protocol."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from base64 import b64decode
from contextlib import contextmanager, suppress

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]


def chromium_path():
    "The browser, or None"
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def installed(module):
    "Whether a module can be imported"
    from importlib.util import find_spec

    return find_spec(module) is not None


@contextmanager
def process(command, log, **env):
    "A program in a process group of its own, which ends with the block; `log` gets what it prints"
    with open(log, "wb") as out:
        run = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **env},
            start_new_session=True,
        )
    try:
        yield run
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(run.pid, how)
            except ProcessLookupError:
                break
            with suppress(subprocess.TimeoutExpired):
                run.wait(10)


def wait_for(ask, what, seconds=60, log=None):
    "The first true answer; a file of log lines explains a failure"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"no {what} after {seconds} s\n{log.read_text(errors='replace')[-3000:] if log else ''}")


@contextmanager
def jupyter_lab(root, home, dark=False, **env):
    "A server on 127.0.0.1 for the notebooks below `root`, with these settings; yields its address with the token"
    folders = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")} | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/themes": {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=0",
        "--allow-root",
        "--ServerApp.token=only-here",
        f"--ServerApp.root_dir={root}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with process(command, home / "server.log", **folders, IPYTHONDIR=str(home / "ipython"), **env) as server:

        def port():
            assert server.poll() is None, (home / "server.log").read_text(errors="replace")[-3000:]
            return next(
                (
                    p
                    for f in (home / "runtime").glob("jpserver-*.json")
                    if (p := json.loads(f.read_text() or "{}").get("port"))
                ),
                None,
            )

        yield f"http://127.0.0.1:{wait_for(port, 'server', 60, home / 'server.log')}/lab/tree/NOTEBOOK?token=only-here"


class Page:
    "A tab of Chromium"

    def __init__(self, address):
        import websocket

        self.socket, self.n, self.events = websocket.create_connection(address, timeout=120, max_size=None), 0, []

    def call(self, method, **params):
        "One command of the DevTools protocol"
        self.n += 1
        self.socket.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.n:
                break
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def js(self, code):
        "The value of a JavaScript expression; a promise is waited for"
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code, seconds=60):
        "Until a JavaScript expression is true"
        return wait_for(lambda: self.js(code), code, seconds)

    def arrow_right(self, times=1):
        "Press a key"
        for kind in ("keyDown", "keyUp") * times:
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
            )

    def picture(self, file, height=None, width=1200):
        "What is seen, `height` pixels of it"
        if height:
            self.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
        time.sleep(0.5)
        file.write_bytes(b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(home, width=1200, height=1600):
    "A headless Chromium; yields its one page"
    command = [
        chromium_path(),
        *CHROMIUM,
        f"--user-data-dir={home / 'chromium'}",
        f"--window-size={width},{height}",
        "about:blank",
    ]
    with process(command, home / "chromium.log"):
        file = home / "chromium" / "DevToolsActivePort"
        port = wait_for(
            lambda: file.is_file() and file.read_text().split("\n")[0], "browser", 60, home / "chromium.log"
        )

        def pages():
            return [
                o
                for o in json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10))
                if o["type"] == "page"
            ]

        page = Page(wait_for(pages, "page", 30)[0]["webSocketDebuggerUrl"])
        try:
            yield page
        finally:
            page.socket.close()


PANEL = "[...jupyterapp.shell.widgets('main')].find(o => o.sessionContext)"  # of the notebook
IDLE = f"window.jupyterapp && {PANEL}?.sessionContext.session?.kernel?.status === 'idle'"


def open_notebook(page, address, name):
    "Open a notebook, not run yet"
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)
    page.call("Page.navigate", url=address.replace("NOTEBOOK", name))
    page.wait(f"{IDLE} && !!document.querySelector('.jp-Notebook .jp-Cell')", 120)
    page.js(f"jupyterapp.shell.activateById({PANEL}.id), 0")
    page.wait("!!jupyterapp.shell.currentWidget?.sessionContext")


def run_all(page, seconds=300):
    "Run all cells, to the last or the first error"
    page.js(
        "window.ended = false, jupyterapp.commands.execute('notebook:run-all-cells')"
        ".finally(() => window.ended = true), 0"
    )
    page.wait(
        f"window.ended && {IDLE} && "
        "![...document.querySelectorAll('.jp-Notebook .jp-InputPrompt')].some(o => o.textContent.includes('*'))",
        seconds,
    )


SEEN = """(() => { const all = s => [...document.querySelectorAll('.jp-Notebook ' + s)];
const prompts = all('.jp-CodeCell > .jp-Cell-inputWrapper .jp-InputPrompt'), kind = 'application/vnd.jupyter.';
return {code: all('.jp-CodeCell').length, ran: prompts.filter(o => /\\[\\d+\\]/.test(o.textContent)).length,
errors: all(`[data-mime-type="${kind}error"], [data-mime-type="${kind}stderr"]`).map(o => o.textContent),
pictures: all('.jp-OutputArea img').map(o => o.naturalWidth), figures: all('.jp-OutputArea figure').length,
sliders: all('.widget-slider .noUi-handle').length,
text: all('.jp-OutputArea').map(o => o.innerText).join('\\n')}})()"""


def seen(page):
    "What the open notebook shows: number of code cells, of those that ran, errors, widths of pictures, sliders, text"
    return page.js(SEEN)
