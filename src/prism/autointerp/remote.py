"""Language models that explain and judge: one on this disk, or any OpenAI-compatible endpoint; both off by default.

The key of an endpoint is read from the environment when a request is made, and is kept nowhere: no attribute, message,
log or file holds it, and it is sent to the address it was given for and no other.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from prism.autointerp.prompts import Ask
from prism.device import device

BASE, KEY, MODEL, EXPLAINER = "PRISM_API_BASE", "PRISM_API_KEY", "PRISM_API_MODEL", "PRISM_EXPLAINER"
HOW = (
    f"No language model explains here. To turn one on, set {EXPLAINER} to an instruction model's folder or hub "
    f"name, or {BASE}, {MODEL} and {KEY} for an OpenAI-compatible endpoint."
)
LONGEST_ANSWER = 2**20  # bytes read of a response
LONGEST_PAUSE = 30.0  # seconds between two attempts
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class EndpointError(RuntimeError):
    """An endpoint that cannot be reached, refuses, or answers what no chat completion is."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Asks an OpenAI-compatible endpoint: `endpoint(prompt)` is the answer.

    Attributes:
        base: address without `/chat/completions`, such as `https://host/v1`; plain http for this machine only.
        model: name that the endpoint knows the model by.
        timeout: seconds for each attempt.
        attempts: how often to try where the endpoint is busy (429), fails (5xx) or cannot be reached.
        tokens: of an answer, at most.
        pause: waits so many seconds.

    Raises:
        ValueError: an address that is none, that holds a name or key, or that would send the key unencrypted.
    """

    base: str
    model: str
    timeout: float = 60.0
    attempts: int = 4
    tokens: int = 200
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base)
        if "@" in parts.netloc or parts.query or parts.fragment:
            object.__setattr__(self, "base", "")  # whatever it holds may be a secret
            raise ValueError(f"{BASE} must hold no name, key or query; give the address alone and the key in {KEY}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{BASE} is no address; give one such as https://host/v1")
        if parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS:
            raise ValueError(
                f"{BASE} is plain http to '{parts.hostname}', which would send key and texts unencrypted; "
                "give https (http is for this machine only)"
            )
        if self.attempts < 1 or not self.model:
            raise ValueError(f"give at least 1 attempt and the model's name ({MODEL})")

    def __call__(self, prompt: str) -> str:
        """The answer to one prompt.

        Raises:
            EndpointError: refused, unreachable after all attempts, or an answer that is no chat completion.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.tokens,
        }
        data, problem = json.dumps(body).encode(), ""
        for attempt in range(self.attempts):
            answer, problem, wait = self._try(data)
            if answer is not None:
                return _content(answer)
            if attempt + 1 < self.attempts:
                self.pause(min(wait if wait is not None else 0.5 * 2**attempt, LONGEST_PAUSE))
        raise EndpointError(f"the endpoint {problem}, {self.attempts} times; try later")

    def _try(self, data: bytes) -> tuple[bytes | None, str, float | None]:
        """One attempt: the answer, or what went wrong and for how many seconds to wait, if the endpoint says so."""
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(self._request(data), timeout=self.timeout) as response:
                return response.read(LONGEST_ANSWER), "", None
        except urllib.error.HTTPError as error:
            code, wait = error.code, error.headers.get("Retry-After", "")
            error.close()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            return None, f"could not be reached ({type(reason).__name__})", None
        if code != 429 and code < 500:
            raise EndpointError(f"the endpoint refused (HTTP {code}): {_advice(code)}")
        return None, f"is busy or fails (HTTP {code})", float(wait) if wait.isdigit() else None

    def _request(self, data: bytes) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "User-Agent": "prism"}
        if os.environ.get(KEY):
            headers["Authorization"] = _bearer()
        return urllib.request.Request(f"{self.base.rstrip('/')}/chat/completions", data, headers, method="POST")


def _bearer() -> str:
    """The header's value. A key with a line break would end up in the message of http.client's own error."""
    if not _sendable(os.environ[KEY].strip()):
        raise EndpointError(f"{KEY} holds a space, a line break or a character that no key has; set it again")
    return f"Bearer {os.environ[KEY].strip()}"


def _sendable(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key


def _advice(code: int) -> str:
    """What to do about an answer; the endpoint's own words are left out, for they may repeat the key."""
    known = {
        400: f"the request; check {MODEL}",
        401: f"check {KEY}",
        403: f"{KEY} may not use this model",
        404: f"check {BASE} (it ends before /chat/completions) and {MODEL}",
    }
    return known.get(code, f"check {BASE}: a redirect is not followed" if code < 400 else f"check {BASE} and {MODEL}")


def _content(answer: bytes) -> str:
    """The text inside a chat completion."""
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise EndpointError("the endpoint answered, but with no chat completion (choices[0].message.content)")
    return content


class LocalModel:
    """Asks an instruction model through `transformers`: `model(prompt)` is the answer."""

    def __init__(self, source: str | Path, tokens: int = 100) -> None:
        """Load it; from safetensors only, and no code that comes with it is run.

        Args:
            source: folder that `save_pretrained` wrote, tokenizer included, or a name on the Hugging Face hub.
            tokens: of an answer, at most.

        Raises:
            FileNotFoundError: no such model here, and the hub has none or cannot be reached.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.source, self.tokens = str(source), tokens
        dtype = "float32" if device().type == "cpu" else "auto"  # few CPUs are quick in bfloat16
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                self.source, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
            raise FileNotFoundError(
                f"{EXPLAINER}: no model at '{self.source}' ({reason}). Give a folder with a model and its tokenizer, "
                "or a hub name that is cached or can be fetched"
            ) from None
        self.model = model.to(device()).eval()

    def __call__(self, prompt: str) -> str:
        """The answer to one prompt, without sampling; a chat template is used where there is one.

        Raises:
            ValueError: a prompt that is too long for the model.
        """
        text = prompt
        if getattr(self.tokenizer, "chat_template", None):
            message = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=text is prompt)
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        length, room = inputs["input_ids"].shape[1], getattr(self.model.config, "max_position_embeddings", None)
        if room and length + self.tokens > room:
            raise ValueError(
                f"a prompt of {length} tokens and an answer of up to {self.tokens}: '{self.source}' takes "
                f"{room} together; show fewer windows, or take another model"
            )
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        out = self.model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False, pad_token_id=pad)
        return self.tokenizer.decode(out[0, length:], skip_special_tokens=True)


def model_from_environment() -> Ask | None:
    """The language model that the environment names, a local one before an endpoint; None where it names none.

    Raises:
        ValueError: an endpoint's address without the model's name, or the other way round.
        FileNotFoundError: no such local model.
    """
    if source := os.environ.get(EXPLAINER):
        return LocalModel(source)
    base, model = os.environ.get(BASE), os.environ.get(MODEL)
    if bool(base) != bool(model):
        raise ValueError(f"{BASE if base else MODEL} is set and {MODEL if base else BASE} is not; set both, or neither")
    return Endpoint(base, model) if base and model else None
