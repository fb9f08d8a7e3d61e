"""A real browser for tests: Chromium without a window, by its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CODES = {"Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36}
CODES |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


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
        asked = self.asked
        while (answer := json.loads(self.socket.recv())).get("id") != asked:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path | str, width: int, height: int = 800):
        """page: a file, or an address."""
        self.events.clear()
        phone = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **phone)
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._note(json.loads(self.socket.recv()))

    def _note(self, told: dict):
        if told.get("method") == "Page.javascriptDialogOpening":  # a page that asks whether it may be left: it may
            self.asked += 1
            leave = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self.socket.send(json.dumps({"id": self.asked} | leave))
        elif "method" in told:
            self.events.append(told)

    def value(self, script: str):
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str):
        """Press and release a key, by the name that its event carries: "a", "Enter", "ArrowRight", ..."""
        told = {"key": key, "code": key, "windowsVirtualKeyCode": CODES.get(key) or ord(key.upper())}
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **told, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **told)

    def tap(self, selector: str):
        """A finger on the middle of an element, which is brought into view."""
        self.ask("Emulation.setTouchEmulationEnabled", enabled=True)
        middle = "(() => { const e = document.querySelector(%s); e.scrollIntoView({block: 'nearest'}); "
        middle += "const b = e.getBoundingClientRect(); return {x: b.x + b.width / 2, y: b.y + b.height / 2} })()"
        place = self.value(middle % json.dumps(selector))
        self.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[place])
        self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.ask("Emulation.setTouchEmulationEnabled", enabled=False)

    def downloads(self, folder: Path):
        """From here on files are saved to a folder."""
        self.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def until(self, script: str, seconds: float = 60):
        """Wait until a script's value is true."""
        end = time.monotonic() + seconds
        while not self.value(f"Boolean({script})"):
            if time.monotonic() > end:
                raise AssertionError(f"after {seconds} s still not: {script}\n{self.value('document.body.innerText')}")
            time.sleep(0.1)

    def picture(self, path: Path):
        """Save what the window shows, a PNG file."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

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
