"""Questions to an OpenAI-compatible endpoint: cached, retried, a few at once, within a budget.

HTTP, retries with back-off and time limits are the `openai` package's; it is imported when a Client is made.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mllm_align.api import cache
from mllm_align.api.spending import Bill, Budget, Purse, Usage
from mllm_align.fingerprints import digest
from mllm_align.records import ImageRef
from mllm_align.redact import VARIABLE

if TYPE_CHECKING:
    from PIL.Image import Image

QUOTED = 300  # characters of a server's message
CONTENT_REFUSED = {"content_filter", "content_policy_violation"}
REMEDIES = {
    400: "it does not take one of the settings (remove or rename it there: some models know no logprobs, no "
    "temperature, or call max_tokens max_completion_tokens), or the model takes no images",
    401: "give the variable {variable} a key that this endpoint knows",
    403: "the key in {variable} may not use this model; ask its owner, or choose another model",
    404: "check base_url (it usually ends in /v1) and the model's name",
    413: "the image is too large for it; set image_format to jpeg",
    422: "it does not take one of the settings; remove or rename it there",
    429: "its rate limit or your quota is used up: lower concurrency, raise retries, or look at your account",
}


class ApiError(RuntimeError):
    """The endpoint could not be asked or did not answer as it should; says which, and what to do."""


@dataclass(frozen=True)
class Question:
    """One turn of a user: a text and, if given, an image before it. `name` is for messages only.

    `role` is whose turn it is, `system` a system message before it, `settings` overrule the Client's for this
    question, and `draw` tells apart questions that are asked again to get another answer (the cache holds each).
    """

    text: str
    image: ImageRef | None = None
    name: str = ""
    role: str = "user"
    system: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    draw: int = 0


@dataclass(frozen=True)
class Token:
    """A token of an answer with its log-probability (nats), and the likeliest ones in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """`tokens` is None where the endpoint gave no log-probabilities; `refused` by a filter of contents.

    `model` is the version that answered, as the endpoint names it, `finish` why it ended ("stop", "length").
    """

    text: str
    tokens: tuple[Token, ...] | None = None
    refused: bool = False
    model: str | None = None
    finish: str | None = None


@dataclass(frozen=True)
class Terms:
    """How an endpoint is asked: nothing here changes an answer.

    `api_key_env` names the environment variable that holds the key (None: the endpoint wants none), `cache` is
    a folder (None: answers are not kept, and cost nothing), `timeout` is in seconds for one attempt, `retries`
    counts the attempts after the first.
    """

    cache: str | None
    api_key_env: str | None
    budget: Budget = field(default_factory=Budget)
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 5

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0:
            raise ValueError(
                f"concurrency={self.concurrency}, timeout={self.timeout}, retries={self.retries}: at least one "
                "question at once, a time limit above 0 and no fewer than 0 retries are needed"
            )
        if self.cache is None and self.budget.capped:
            raise ValueError("what was spent is noted in the cache: name a folder as `cache`, or set no cap")


class Client:
    """Asks one model. `settings` go into every request as they are; they and the model are part of the cache's key.

    Raises ValueError where no model is named, ApiError where the key or the `openai` package is missing.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str | None,
        settings: Mapping[str, Any],
        terms: Terms,
        image_format: str = "png",
    ) -> None:
        if not model:
            raise ValueError(f"no model is named; set `model` to one that {plain_url(base_url)} serves")
        if image_format not in ("png", "jpeg"):
            raise ValueError(f"image_format is {image_format!r}; choose png or jpeg")
        self.base_url, self.model, self.terms = base_url, model, terms
        self.settings, self.image_format = dict(settings), image_format
        self._key = key_of(terms.api_key_env, base_url)
        self._openai = _openai()
        self._client = self._openai.OpenAI(
            # Without a key the package would send the one it finds in OPENAI_API_KEY, whoever is asked.
            api_key=self._key or "none",
            base_url=base_url,
            timeout=terms.timeout,
            max_retries=terms.retries,
        )
        self._purse = None if terms.cache is None else Purse(Path(terms.cache), model, terms.budget)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One Reply a Question, in order. Stops at the first ApiError or SpendingCapReached; what was paid is kept."""
        stop = threading.Event()
        with ThreadPoolExecutor(self.terms.concurrency, thread_name_prefix="ask") as pool:
            futures = [pool.submit(self._unless, stop, question) for question in questions]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                # Questions start in order, so those that were stopped come after the one that failed.
                for future in futures:
                    if future.done() and (error := future.exception()):
                        raise error
                return [future.result() for future in futures]
            finally:
                stop.set()

    def report(self) -> dict[str, Any]:
        """What this Client asked and paid; `in all` is what was ever paid for answers in the cache's folder.

        `money` is in the unit of the prices, None where none were given.
        """
        with self._lock:
            counts = dict(self._counts)
        here, total = (self._purse.here, self._purse.total) if self._purse else (Bill(), Bill())
        priced = self.terms.budget.priced
        return {
            "requests": counts.get("requests", 0),
            "cached": counts.get("cached", 0),
            "refused": counts.get("refused", 0),
            "prompt tokens": here.prompt_tokens,
            "answer tokens": here.answer_tokens,
            "money": here.money if priced else None,
            "tokens in all": total.tokens,
            "money in all": total.money if priced else None,
        }

    def _unless(self, stop: threading.Event, question: Question) -> Reply:
        """The answer, unless another question has failed before this one is begun."""
        if stop.is_set():
            raise CancelledError
        try:
            return self._answer(question)
        except BaseException:
            stop.set()
            raise

    def _answer(self, question: Question) -> Reply:
        image = None if question.image is None else question.image.load()
        if self._purse is None:
            self._count("requests")
            return self._send(question, image)[0]
        asked = self._asked(question, image)
        key, folder = digest(asked), self._purse.file.parent
        if (known := self._known(folder, key)) is not None:
            return known
        with cache.asking(folder, key):
            if (known := self._known(folder, key)) is not None:
                return known
            return self._pay_for(self._purse, question, image, asked)

    def _asked(self, question: Question, image: Image | None) -> dict[str, Any]:
        """What decides the answer. Pixels count, not their encoding, which differs between library versions."""
        seen = None if image is None else f"{self.image_format}, pixels {pixels_sha256(image)}"
        return {
            "endpoint": plain_url(self.base_url),
            "model": self.model,
            "settings": {**self.settings, **question.settings},
            "messages": messages(question, seen),
            **({"draw": question.draw} if question.draw else {}),
        }

    def _known(self, folder: Path, key: str) -> Reply | None:
        entry = cache.read(folder, key)
        if entry is None:
            return None
        self._count("cached")
        return reply_from(entry["reply"])

    def _pay_for(self, purse: Purse, question: Question, image: Image | None, asked: dict[str, Any]) -> Reply:
        with purse.asking():
            self._count("requests")
            reply, usage = self._send(question, image)
            counted = None if usage is None else asdict(usage)
            entry = {"asked": asked, "reply": asdict(reply), "usage": counted}
            cache.write(purse.file.parent, digest(asked), entry)
            if usage is not None:
                purse.pay(usage)
        if reply.refused:
            self._count("refused")
        elif usage is None and self.terms.budget.capped:
            raise ApiError(
                f"{self._who(question)}: it does not say how many tokens an answer took, so no cap can be kept; "
                "set max_spend and max_total_tokens to null if asking it costs nothing"
            )
        return reply

    def _send(self, question: Question, image: Image | None) -> tuple[Reply, Usage | None]:
        url = None if image is None else data_url(image, self.image_format)
        problem, completion = "", None
        try:
            completion = self._client.chat.completions.create(
                model=self.model,
                messages=messages(question, url),
                extra_body={**self.settings, **question.settings},
            )
        except self._openai.OpenAIError as error:
            if getattr(error, "code", None) in CONTENT_REFUSED:
                return Reply("", refused=True), None
            problem = self._explain(error)
        except ValueError as error:
            problem = f"its answer is not JSON ({error}); check base_url (it usually ends in /v1)"
        if not problem:
            try:
                return reply_of(completion), usage_of(completion)
            except (AttributeError, TypeError, IndexError):
                problem = (
                    f"its answer is not a chat completion ({' '.join(str(completion).split())[:QUOTED]}); "
                    "check base_url (it usually ends in /v1)"
                )
        # Raised outside of the handlers: the error that was caught holds the request with its key.
        raise ApiError(self._without_key(f"{self._who(question)}: {problem}"))

    def _explain(self, error: Exception) -> str:
        status = getattr(error, "status_code", None)
        if status is not None:
            remedy = REMEDIES.get(status, "it is in trouble; try later, or raise retries")
            remedy = remedy.format(variable=self.terms.api_key_env or "named by api_key_env")
            # A server may quote a part of the key that it refuses.
            said = "" if status == 401 else f" ({' '.join(str(error).split())[:QUOTED]})"
            return f"HTTP {status}{said}; {remedy}"
        if isinstance(error, self._openai.APITimeoutError):
            return f"no answer in {self.terms.timeout:g} s; raise timeout, or lower concurrency"
        if isinstance(error, self._openai.APIConnectionError):
            return f"cannot be reached ({error.__cause__ or error}); check base_url and the network"
        return f"{type(error).__name__}: {error}"

    def _who(self, question: Question) -> str:
        about = f", question about {question.name}" if question.name else ""
        return f"{plain_url(self.base_url)}, model {self.model}{about}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[removed]") if self._key else text

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1


# --- what goes out and comes back --------------------------------------------------------------------------


def messages(question: Question, image_url: str | None) -> list[dict[str, Any]]:
    """The system message if there is one, and a turn: the text alone, or the image and then the text."""
    first = [] if question.system is None else [{"role": "system", "content": question.system}]
    if image_url is None:
        return [*first, {"role": question.role, "content": question.text}]
    image = {"type": "image_url", "image_url": {"url": image_url}}
    return [*first, {"role": question.role, "content": [image, {"type": "text", "text": question.text}]}]


def data_url(image: Image, image_format: str) -> str:
    """`data:image/...;base64,...` of the image in RGB; png is exact, jpeg a fifth of its size."""
    encoded = io.BytesIO()
    image.convert("RGB").save(
        encoded, image_format.upper(), **({"quality": 95} if image_format == "jpeg" else {})
    )
    return f"data:image/{image_format};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def pixels_sha256(image: Image) -> str:
    """SHA-256 over size and RGB values."""
    seen = image.convert("RGB")
    return hashlib.sha256(f"{seen.width}x{seen.height}:".encode() + seen.tobytes()).hexdigest()


def reply_of(completion: Any) -> Reply:
    """The first choice of a chat completion. Raises AttributeError, TypeError or IndexError for anything else."""
    choice = completion.choices[0]
    listed = choice.logprobs.content if getattr(choice, "logprobs", None) else None
    tokens = None
    if listed:
        tokens = tuple(
            Token(t.token, t.logprob, tuple((o.token, o.logprob) for o in t.top_logprobs or ()))
            for t in listed
        )
    return Reply(
        choice.message.content or "",
        tokens,
        model=getattr(completion, "model", None),
        finish=getattr(choice, "finish_reason", None),
    )


def reply_from(entry: Mapping[str, Any]) -> Reply:
    """A Reply as the cache holds it."""
    tokens = entry["tokens"]
    if tokens is not None:
        tokens = tuple(Token(t["text"], t["logprob"], tuple((o, p) for o, p in t["top"])) for t in tokens)
    return Reply(entry["text"], tokens, entry["refused"], entry.get("model"), entry.get("finish"))


def usage_of(completion: Any) -> Usage | None:
    """Tokens that the endpoint counted, None where it does not."""
    usage = completion.usage
    return None if usage is None else Usage(usage.prompt_tokens, usage.completion_tokens)


def key_of(variable: str | None, base_url: str) -> str | None:
    """The key from the environment; None where no variable is named. Raises ApiError, which quotes no secret."""
    if variable is None:
        return None
    if not VARIABLE.fullmatch(variable):
        raise ApiError(
            "api_key_env is the NAME of an environment variable (capital letters, digits, underscores), not the "
            "key itself; export the key under a name such as OPENAI_API_KEY"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ApiError(
            f"{plain_url(base_url)} wants a key, and the environment variable {variable} is not set; "
            f"export {variable}=..., or set api_key_env to null for an endpoint that wants none"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ApiError(f"the environment variable {variable} holds spaces or other signs that no key has")
    return key


def plain_url(url: str) -> str:
    """Scheme, host and path: no login and no query, which may be secret."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}".rstrip("/")


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise ApiError(
            "asking an endpoint needs the `openai` package; install it with: pip install 'mllm-align[api]'"
        ) from None
    return openai
