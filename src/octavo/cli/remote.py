"""The command line's connections to servers, and what can go wrong with them in words."""

import ipaddress
from http import HTTPStatus
from typing import Any

import httpx

from octavo.errors import OctavoError

TIMEOUT = httpx.Timeout(600, connect=5)


class RemoteError(OctavoError):
    """A server that cannot be asked, or did not answer as asked."""


def connect(url: str) -> httpx.Client:
    """A client of the server at a URL, with or without /v1. This machine's own servers are reached directly, others
    through the proxy that the environment names.

    Raises:
        RemoteError: it is no URL, or the proxy's is none that can be used.
    """
    base = _base(url)
    local = _is_local(base.host)
    try:
        return httpx.Client(base_url=base, timeout=TIMEOUT, trust_env=not local)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        reason = str(error).split(". ")[0].rstrip(".")
        raise RemoteError(
            f"the environment names a proxy (HTTP_PROXY, ALL_PROXY) that cannot be used: {reason}"
        ) from error


def connect_unix(path: str) -> httpx.Client:
    """A client of the server that listens on a Unix socket."""
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=path), base_url="http://localhost", timeout=TIMEOUT, trust_env=False
    )


def _base(url: str) -> httpx.URL:
    try:
        base = httpx.URL(url.strip().rstrip("/").removesuffix("/v1"))
    except (httpx.InvalidURL, ValueError) as error:
        raise RemoteError(f"{url!r} is no URL of a server: {error}; write http://HOST:PORT") from error
    if base.scheme not in ("http", "https") or not base.host or b"%" in base.raw_host:
        raise RemoteError(f"{url!r} is no URL of a server; write http://HOST:PORT")
    return base


def _is_local(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def error_message(body: object, otherwise: str) -> str:
    """What an error says, in OpenAI's shape or one that others answer with; `otherwise` if it says nothing."""
    found: Any = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail")
    return found if isinstance(found, str) and found.strip() else otherwise


def status_error(response: httpx.Response) -> RemoteError:
    """The error for a response that is none of success. Its body must have been read."""
    otherwise = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
    try:
        message = error_message(response.json(), otherwise)
    except ValueError:  # a proxy's page, perhaps
        message = otherwise
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        message = f"{message.rstrip('.')}; yours is taken from --api-key or OCTAVO_API_KEY"
    return RemoteError(message)


def lost(client: httpx.Client, error: httpx.HTTPError) -> RemoteError:
    """The error for a connection that ended in the middle of an answer."""
    return RemoteError(f"lost the server at {client.base_url}: {error or type(error).__name__}")
