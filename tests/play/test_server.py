"""The server answers the page of its own address only. Its application is called without a network."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from minillm.play.server import MOST_BYTES, application
from minillm.prompting.chat_session import ChatSession

HOST, TOKEN = "127.0.0.1:8765", "right"
LOOK = ("POST", "/api/look", {"text": "Tom has 3 apples.", "adapter": 0})


def call(app, method, path, body=None, **headers):
    """The status, the headers and the body of the response."""
    sent, data = [], body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"host": HOST, "x-token": TOKEN} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "scheme": "http", "server": ("127.0.0.1", 8765), "client": ("::1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in given.items() if value is not None],
    }  # fmt: skip
    received = iter([{"type": "http.request", "body": data}])

    async def receive():
        return next(received, None) or await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    start, *rest = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, b"".join(message.get("body", b"") for message in rest)


@pytest.fixture
def app(page):
    return application(page, TOKEN, {HOST, "localhost:8765"})


def test_the_page_and_its_api_answer(app, page):
    status, headers, body = call(app, "GET", "/", x_token=None)
    assert (status, b"<title>minillm play</title>" in body) == (200, True)
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in headers["content-security-policy"]
    assert json.loads(call(app, "GET", "/api/about")[2]) == page.about
    status, headers, body = call(app, *LOOK, origin=f"http://{HOST}")
    assert (status, headers["x-content-type-options"]) == (200, "nosniff")
    assert "".join(json.loads(body)["tokens"]) == LOOK[2]["text"]


def test_the_chat_answers_messages_as_the_session_does(app, base, monkeypatch):
    monkeypatch.setattr("minillm.prompting.chat_session.ANSWER_TOKENS", 20)
    messages = [{"role": "user", "content": "Tom"}]
    status, headers, answer = call(app, "POST", "/api/chat", {"messages": messages})
    assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.decode() == "".join(ChatSession(*base).complete(messages))
    assert call(app, "POST", "/api/chat", {"messages": messages, "adapter": 0})[2] != answer
    for wrong in ([], [{"role": "user", "content": "a" * 600}]):
        assert call(app, "POST", "/api/chat", {"messages": wrong})[0] == 422


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:8765"},
        {"host": "127.0.0.1:9999"},
        {"host": "127.0.0.1"},
        {"host": None},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8765"},
        {"x_token": None},
        {"x_token": ""},
        {"x_token": "wrong"},
        {"x_token": "right "},
    ],
    ids=str,
)
def test_a_request_of_another_page_is_refused(app, headers):
    status, found, body = call(app, *LOOK, **headers)
    assert (status, b"tokens" in body) == (403, False)
    assert "content-security-policy" in found


def test_a_file_outside_of_the_page_is_not_served(app):
    for path in ("/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "//etc/passwd", "/api/"):
        assert call(app, "GET", path)[0] == 404


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"a" * (MOST_BYTES + 1), "a request may have 65536 bytes"),
        (b"[" * 60000, "a request must be a JSON object"),
        (b"\xff", "a request must be a JSON object"),
        (b"3", "a request must be a JSON object"),
        ({"text": "a", "directory": "/etc"}, "a request must be a JSON object with the fields of the page"),
        ({"text": "a", "adapter": "/etc"}, "adapter has the wrong type: '/etc'"),
        ({"text": "a", "adapter": 7}, "there is no adapter 7"),
        ({"text": "1 " * 3000}, "the text may have 256 tokens"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_request_that_cannot_be_answered_is_one_sentence(app, body, sentence):
    status, _, answer = call(app, "POST", "/api/look", body)
    assert (status, json.loads(answer)["error"].startswith(sentence)) == (422, True)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_the_command_serves_until_ctrl_c():
    words = [sys.executable, "-m", "minillm", "play", "--base", "tiny", "--no-browser", "--threads", "1", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        address, _, token = server.stdout.readline().strip().partition("#")
        request = urllib.request.Request(f"{address}api/about", headers={"x-token": token})
        with urllib.request.urlopen(request) as response:
            assert json.load(response)["name"] == "tiny"
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
        assert server.stderr.read() == ""


@pytest.fixture
def refused(monkeypatch, capsys):
    """What `minillm play` with these options says and refuses."""
    from minillm.cli import main

    def run(*words):
        monkeypatch.setattr("sys.argv", ["minillm", "play", "--base", "tiny", *words])
        with pytest.raises(SystemExit, match="2"):
            main()
        return capsys.readouterr().err

    return run


def test_a_port_that_is_taken_or_does_not_exist_is_one_sentence(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused("--port", str(port)).startswith(f"minillm: cannot listen on port {port} (")
    assert refused("--port", "65536").endswith("give another one with --port\n")


def test_without_the_extra_the_command_names_it(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert refused() == "minillm: minillm play needs uvicorn: pip install 'minillm[play]'\n"
