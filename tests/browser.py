"""A real browser for tests: Chromium without a window, by its DevTools protocol."""

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """events: what it told since the last page was opened."""

    FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    FLAGS += "--disable-component-update --disable-sync --remote-debugging-port=0"

    def __init__(self, folder: Path):
        command = [CHROMIUM, *self.FLAGS.split(), f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port, until = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port.is_file() and port.read_text().count("\n")):
            assert time.monotonic() < until and self.process.poll() is None, "Chromium did not start"
            time.sleep(0.1)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list", timeout=30) as answer:
            address = next(t for t in json.load(answer) if t["type"] == "page")["webSocketDebuggerUrl"]
        own = {"suppress_origin": True, "http_no_proxy": ["127.0.0.1"], "timeout": 60}
        self.socket, self.events, self.asked = websocket.create_connection(address, **own), [], 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters):
        self.asked += 1
        self.socket.send(json.dumps({"id": self.asked, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.asked:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path, width: int):
        self.events.clear()
        phone = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **phone)
        self.ask("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def value(self, script: str):
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wrong(self) -> list:
        """Errors in the console, what could not be loaded, and what was asked for beyond the folder."""
        found = []
        for event in self.events:
            name, told = event["method"], event["params"]
            if name == "Runtime.exceptionThrown" or name == "Network.loadingFailed":
                found.append(told)
            elif name == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                found.append(told["entry"])
            elif name == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
                found.append(told)
            elif name == "Network.requestWillBeSent" and not told["request"]["url"].startswith(("file:", "data:")):
                found.append(told["request"]["url"])
        return found

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
