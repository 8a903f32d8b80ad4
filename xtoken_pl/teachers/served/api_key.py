"""The key of a server, which is read from the environment and sent in a header."""

from __future__ import annotations

import os

import requests
from requests.auth import AuthBase

from xtoken_pl.specs import Server
from xtoken_pl.utilities.errors import UserError


class Bearer(AuthBase):
    """Authorization header with the key, or without one; either way a ``.netrc`` file is not used."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def read_api_key(name: str, server: Server) -> str | None:
    """Reads the key; no message repeats it."""
    variable = server.api_key_env
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {variable!r} must hold the API key of the server of teacher {name!r}, but it is "
            f"{'empty' if variable in os.environ else 'not set'}; set it, or leave `api_key_env` out"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"the API key in the environment variable {variable!r} must consist of printable ASCII characters without "
            "spaces; set it to the key alone"
        )
    return key
