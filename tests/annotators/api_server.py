"""A chat-completions endpoint on the loopback that answers by a rule and remembers what it was sent."""

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

# Answers in a few milliseconds, or fails so: (status, body).
Failure = tuple[int, dict[str, Any] | str]


@dataclass
class Endpoint:
    """What it says and what it was told. `rule(text)` is the answer to a question, `failures` come first.

    `model(body)` answers in place of `rule`: a text, and why it ended.
    """

    rule: Callable[[str], str]
    url: str = ""
    failures: list[Failure] = field(default_factory=list)
    log_odds: Callable[[str], float] | None = None  # of A; None answers without log-probabilities
    usage: bool = True
    delay: float = 0.0
    model: Callable[[dict[str, Any]], tuple[str, str]] | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    together: int = 0  # most requests that were open at once
    open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def texts(self) -> list[str]:
        return [text_of(body) for body in self.bodies]

    @property
    def images(self) -> list[Image.Image]:
        return [image_of(body) for body in self.bodies]

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text = text_of(body)
        said, finish = self.model(body) if self.model else (self.rule(text), "stop")
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": finish,
            "message": {"role": "assistant", "content": said},
        }
        if self.log_odds is not None and body.get("logprobs"):
            choice["logprobs"] = {"content": [listed(self.log_odds(text), said)]}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
        }
        if self.usage:
            reply["usage"] = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
        return reply


def listed(odds: float, said: str) -> dict[str, Any]:
    """The one token of an answer with these log-odds of A: 0.9 of the mass on both letters."""
    a = math.log(0.9) - math.log1p(math.exp(-odds))
    b = math.log(0.9) - math.log1p(math.exp(odds))
    # A's mass in two spellings, as tokenizers have it.
    top = [("A", a + math.log(0.75)), (" A", a + math.log(0.25)), ("B", b), ("I", math.log(0.1))]
    return {
        "token": said,
        "logprob": dict(top)[said],
        "bytes": None,
        "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in top],
    }


def text_of(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]  # a system message may stand before it
    return content if isinstance(content, str) else content[1]["text"]


def image_of(body: dict[str, Any]) -> Image.Image:
    url = body["messages"][-1]["content"][0]["image_url"]["url"]
    kind, _, data = url.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    assert image.format is not None
    assert kind == f"data:image/{image.format.lower()}"
    return image


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def serving(rule: Callable[[str], str], **settings: Any) -> Iterator[Endpoint]:
    endpoint = Endpoint(rule, **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with endpoint.lock:
                endpoint.open += 1
                endpoint.together = max(endpoint.together, endpoint.open)
                endpoint.bodies.append(body)
                endpoint.keys.append(self.headers.get("authorization"))
                failure = endpoint.failures.pop(0) if endpoint.failures else None
            if endpoint.delay:
                threading.Event().wait(endpoint.delay)
            known = self.path == "/v1/chat/completions"
            status, reply = failure or (
                (200, endpoint.answer(body)) if known else (404, {"error": "no such path"})
            )
            with endpoint.lock:
                endpoint.open -= 1
            self.reply(status, reply)

        def reply(self, status: int, reply: dict[str, Any] | str) -> None:
            text = isinstance(reply, str)
            data = (reply if text else json.dumps(reply)).encode()  # type: ignore[union-attr]
            self.send_response(status)
            self.send_header("content-type", "text/html" if text else "application/json")
            self.send_header("content-length", str(len(data)))
            self.send_header("retry-after-ms", "5")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    server = Quiet(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
