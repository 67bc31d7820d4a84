"""report.html in a real browser: headless Chromium, spoken to over its DevTools pipe."""

import fcntl
import json
import os
import select
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from eval.evaluation import Evaluation
from eval.predictions import predict
from eval.report.page import write_page
from tests.hostile_texts import HOSTILE, hostile_questions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COUNT = "document.getElementById('count').textContent"
COMPLAINTS = {
    "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening",
}  # fmt: skip
_PATIENCE = 60.0  # seconds for one answer of the browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)"),
]


class Browser:
    """One page of a headless Chromium. Everything that it logs or throws is in `complaints`."""

    def __init__(self, profile):
        ours, theirs = zip(*(self._pipe(reverse) for reverse in (True, False)), strict=True)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        self.process = subprocess.Popen(
            [CHROMIUM, *arguments, "--autoplay-policy=no-user-gesture-required", f"--user-data-dir={profile}"],
            preexec_fn=lambda: [os.dup2(end, 3 + place) for place, end in enumerate(theirs)],
            close_fds=False,  # or 3 and 4 were closed again; no other is inherited
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in theirs:
            os.close(end)
        self._write, self._read = ours
        self._buffer, self._count, self._session = b"", 0, None
        self.complaints, self.requests, self._loaded = [], [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")

    @staticmethod
    def _pipe(reverse):
        """(our end, Chromium's end), both above 9: Chromium's become 3, which it reads, and 4, which it writes."""
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in os.pipe()]
        return tuple(reversed(ends)) if reverse else tuple(ends)

    def call(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive()
            if reply.get("id") == self._count:
                assert "error" not in reply, reply
                return reply["result"]

    def _receive(self):
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], _PATIENCE)[0], "Chromium does not answer"
            read = os.read(self._read, 1 << 20)
            assert read, "Chromium ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(message)
        kind, content = event.get("method"), event.get("params")
        if kind in COMPLAINTS:
            self.complaints.append(content)
        if kind == "Network.requestWillBeSent" and not content["request"]["url"].startswith("data:"):
            self.requests.append(content["request"]["url"])  # data: are the icons of Chromium's own players
        self._loaded |= kind == "Page.loadEventFired"
        return event

    def open(self, path):
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._receive()

    def evaluate(self, expression):
        """The value of a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """1,000 questions of which every text is hostile; the clips of the first two can be played."""
    folder = tmp_path_factory.mktemp("page")
    questions = hostile_questions(folder, 1000)
    for question in questions[:2]:
        tone = 0.3 * np.sin(np.arange(16_000) / 10)
        with open(question.audio_path, "wb") as file:  # soundfile takes some of these names for something else
            soundfile.write(file, tone, 16_000, format="WAV")
    predictions = {}
    for index, question in enumerate(questions):
        turned = replace(question, choices=question.choices[::-1])
        text = HOSTILE[index % len(HOSTILE)]
        right, hostile = f"<answer>{question.answer}</answer>", f"<think>{text}</think><answer>{text}</answer>"
        for repeat, (asked, completion) in enumerate(((question, right), (turned, hostile))):
            if index != 7:
                one = predict(asked, None if index == 5 else completion, "think", "hash", repeat, permuted=True)
                predictions[one.key] = one
    paths = {"checkpoint": HOSTILE[0], "data": HOSTILE[1]}
    settings = {"prompt_style": "think", "no_audio": False, "hostile": HOSTILE[2]}
    return write_page(Evaluation(folder, questions, predictions, settings, paths, "unknown")), questions


def test_hostile_page_is_quiet_and_small(browser, page):
    path, questions = page
    assert path.stat().st_size < 3_000_000
    browser.open(path)
    browser.evaluate("document.getElementById('all').click()")
    assert browser.evaluate("document.querySelectorAll('article').length") == 1000
    assert browser.evaluate(COUNT) == "1000 of 1000 questions match, 1000 shown."
    # what an injected script would have done, or left to be done on a later event
    browser.evaluate("new Promise((done) => setTimeout(done, 500))")
    assert browser.evaluate("typeof window.injected") == "undefined"
    assert browser.evaluate("document.title").startswith("Evaluation of <script>")
    for injected in ("article :is(script, img, svg), textarea", "[style]"):
        assert browser.evaluate(f"document.querySelectorAll('{injected}').length") == 0
    assert browser.evaluate("document.querySelector('article h3').textContent") == questions[0].question
    attributes = "[...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
    assert browser.evaluate(f"{attributes}.filter((name) => name.startsWith('on'))") == []
    assert browser.complaints == []
    assert browser.requests == [path.as_uri()]  # nothing else is loaded


def test_policy_stops_a_script_that_gets_in(browser, page):
    """The second line of defence, and proof that the first test would see a script that ran."""
    browser.open(page[0])
    browser.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.injected = 1\">');"
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.injected = 1'}));"
        "new Promise((done) => setTimeout(done, 500))"
    )
    assert browser.evaluate("typeof window.injected") == "undefined"
    told = json.dumps(browser.complaints)
    browser.complaints.clear()
    assert "Content Security Policy" in told


def test_filters(browser, page):
    path, questions = page
    browser.open(path)

    def matching(**values):
        for name, value in values.items():
            browser.evaluate(f"document.getElementById('{name}').value = {json.dumps(value)}")
        browser.evaluate("document.getElementById('filters').dispatchEvent(new Event('input'))")
        return int(browser.evaluate(COUNT).split()[0])

    assert [matching(status=status) for status in ("", "no_audio", "missing")] == [1000, 1, 1]
    assert matching(status="", task="0") == sum(one.task == questions[0].task for one in questions)
    assert matching(task="", text="999 ") == 1
    assert matching(text="", verdict="right") + matching(verdict="wrong") + matching(verdict="mixed") == 1000
    # every control has a name for those who do not see it
    unnamed = "[...document.querySelectorAll('input, select')].filter((one) => !one.labels.length).length"
    assert browser.evaluate(unnamed) == 0
    assert browser.complaints == []


@pytest.mark.parametrize("embedded", [False, True])
def test_clips_play(browser, page, tmp_path, embedded):
    path, questions = page
    if embedded:
        paths = {"checkpoint": "x", "data": "y"}
        path = write_page(Evaluation(tmp_path, questions[:2], {}, {}, paths, "unknown"), embed_audio=True)
    browser.open(path)
    load = """new Promise((done) => {
        const player = document.querySelectorAll('audio')[PLACE];
        player.addEventListener('canplaythrough', () => done(player.duration));
        player.addEventListener('error', () => done(-1));
        player.preload = 'auto'; player.load();
    })"""
    # 1 s; MP3 pads to whole frames of 36 ms
    assert browser.evaluate(load.replace("PLACE", "1")) == pytest.approx(1.0, abs=0.2)
    if not embedded:
        assert browser.evaluate(load.replace("PLACE", "2")) == -1  # there is no such file
        assert browser.evaluate("document.querySelectorAll('article')[2].textContent.includes('cannot be played')")
    browser.complaints.clear()  # of the absent file
