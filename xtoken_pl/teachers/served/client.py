"""HTTP client of a teacher's server: one session, time limits, and retries until the patience is used up."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar, cast

import requests
from lightning.pytorch.utilities import rank_zero_info
from requests.adapters import HTTPAdapter
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from xtoken_pl.specs import Server
from xtoken_pl.teachers.served.api_key import Bearer, read_api_key
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import reason_of

T = TypeVar("T")

# Exact powers of two, without chance: nothing is drawn from Python's random numbers.
_BACK_OFF = wait_exponential(multiplier=0.5, max=10.0)
_TRANSIENT = frozenset({408, 425, 429})
_CUT = (
    requests.ConnectionError,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)


class TransientError(Exception):
    """A failure that may pass, so that the request is sent again.

    Args:
        reason: Description of the failure, for messages.
        retry_after: Seconds to wait before the next request, if the server named them.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class RefusedError(UserError):
    """A request that the server refuses for good.

    Args:
        message: The error.
        status: Status code of the answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ServerClient:
    """Sends requests to one server; may be used by several threads of one process.

    Args:
        name: Name of the teacher.
        server: Address, time limits and the name of the variable that holds the API key.
        now: Clock, in seconds.
        sleep: Function that waits for an event for some seconds.

    Raises:
        UserError: If the environment variable with the API key is not set, or holds no key.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self.place = f"the server of teacher {name!r} ({server.url})"
        self.last_success = now()
        self._server = server
        self._root = server.url.rstrip("/").removesuffix("/v1")
        self._now, self._sleep = now, sleep
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._key = read_api_key(name, server)
        self._session = requests.Session()
        self._session.auth = Bearer(self._key)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=server.concurrency))

    def __reduce__(self) -> Any:
        raise TypeError("a client is made in each process, and never pickled: it holds a session and the API key")

    def send(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Sends one request, ``POST`` with a body and ``GET`` without one, and returns the JSON of the answer.

        Raises:
            TransientError: If a later attempt may succeed.
            UserError: If the server refuses the request, or cannot be asked at all.
        """
        method = "GET" if body is None else "POST"
        limit = self._server.timeout
        try:
            response = self._session.request(method, self._root + path, json=body, timeout=limit, allow_redirects=False)
        # The messages of requests repeat addresses and headers: only the reason of the system is passed on.
        except requests.exceptions.SSLError as error:
            if _is_cut(error):
                raise TransientError("connection lost while it was made") from None
            raise UserError(
                f"{self.place} must speak TLS with a valid certificate: {_system_reason(error)}; mend that, or correct "
                "`url`"
            ) from None
        except requests.Timeout:
            raise TransientError(f"no answer within timeout={limit:g} s") from None
        except _CUT as error:
            raise TransientError(f"connection lost: {_system_reason(error)}") from None
        except requests.RequestException as error:
            raise UserError(f"{self.place} cannot be asked ({type(error).__name__}); check `url`") from None
        if response.status_code != 200:
            self._refuse(path, response)
        try:
            return json.loads(response.content)
        except ValueError:
            raise TransientError("an answer that is not JSON") from None

    def _refuse(self, path: str, response: requests.Response) -> None:
        status, message = response.status_code, self._message(response)
        if status in _TRANSIENT or status >= 500:
            raise TransientError(f"status {status}: {message}", _retry_after(response))
        raise RefusedError(
            f"{self.place} refused a request to {path} (status {status}): {message}; {self._way_out(status)}", status
        )

    def _way_out(self, status: int) -> str:
        variable = self._server.api_key_env
        if status in (401, 403) and variable is not None:
            return f"check the key that the environment variable {variable!r} holds (`api_key_env`)"
        if status in (401, 403):
            return "name the environment variable that holds the key by `api_key_env`"
        if 300 <= status < 400:
            return "set `url` to the address that it redirects to"
        return "check `url` and `model`" if status == 404 else "change what it refuses"

    def _message(self, response: requests.Response) -> str:
        """The server's own words, without the key if it repeats it."""
        try:
            said = json.loads(response.content)
            while isinstance(said, dict):
                said = next(said[key] for key in ("error", "message", "detail") if key in said)
        except (ValueError, StopIteration):
            said = response.text
        text = str(said) if self._key is None else str(said).replace(self._key, "***")
        return reason_of(Exception(text)) if text.strip() else response.reason or "no message"

    def keep_trying(self, attempt: Callable[[], T], abandoned: threading.Event | None = None) -> T:
        """Repeats ``attempt`` while it fails, with growing pauses, until the patience is used up.

        Args:
            attempt: Function that sends requests.
            abandoned: Event that ends the attempts, set where their result is no longer wanted.

        Raises:
            UserError: If no attempt of any thread has succeeded for ``patience`` seconds.
        """
        abandoned = threading.Event() if abandoned is None else abandoned
        began, patience = self._now(), self._server.patience

        def is_over(state: RetryCallState) -> bool:
            since = max(began, self.last_success)
            return abandoned.is_set() or self._now() + state.upcoming_sleep - since > patience

        def try_once() -> T:
            if abandoned.is_set():
                raise CancelledError
            result = attempt()
            self.last_success = self._now()
            return result

        with self._waiting() as note:
            retrying = Retrying(
                retry=retry_if_exception_type(TransientError),
                wait=_pause,
                stop=is_over,
                sleep=cast(Callable[[float], None], partial(self._sleep, abandoned)),
                before_sleep=lambda state: note(state.outcome.exception()),  # type: ignore[union-attr]
                reraise=True,
            )
            try:
                return retrying(try_once)
            except TransientError as failure:
                raise UserError(
                    f"{self.place} must answer within patience={patience:g} s, but did not; the last failure was: "
                    f"{failure}. Start the server or mend it, then resume the run, or raise `patience`"
                ) from None

    @contextmanager
    def _waiting(self) -> Iterator[Callable[[BaseException | None], None]]:
        """Logs one line when the first thread begins to wait, and one when no thread waits any more."""
        began: list[float] = []

        def note(failure: BaseException | None) -> None:
            with self._lock:
                self._num_waiting += not began
                is_first = not began and self._num_waiting == 1
                began.append(self._now())
            if is_first:
                rank_zero_info(
                    f"{self.place} does not answer as it should ({failure}); it is asked again for up to "
                    f"{self._server.patience:g} s"
                )

        has_failed = True
        try:
            yield note
            has_failed = False
        finally:
            with self._lock:
                self._num_waiting -= bool(began)
                is_last = bool(began) and self._num_waiting == 0
            if is_last and not has_failed:
                rank_zero_info(f"{self.place} answers again, after {self._now() - began[0]:.0f} s")


def _pause(state: RetryCallState) -> float:
    """Seconds before the next attempt: an exponential back-off, or longer if the server says so."""
    failure = state.outcome.exception() if state.outcome is not None else None
    named = failure.retry_after if isinstance(failure, TransientError) else None
    return max(_BACK_OFF(state), named or 0.0)


def _retry_after(response: requests.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value) if value.isdigit() else _seconds_until(parsedate_to_datetime(value))
    except ValueError:
        return None
    return seconds


def _seconds_until(date: datetime) -> float:
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return (date - datetime.now(UTC)).total_seconds()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        reason = getattr(found, "reason", None)  # of urllib3's errors
        found = found.__cause__ or found.__context__ or (reason if isinstance(reason, BaseException) else None)


def _is_cut(error: BaseException) -> bool:
    """Whether a connection ended while TLS was agreed on, as where a server is being restarted."""
    return any(isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError) for cause in _causes(error))


def _system_reason(error: BaseException) -> str:
    """Reason that the operating system gives, such as ``Connection refused``."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return "no connection" if isinstance(error, requests.ConnectionError) else "the answer was cut off"
