"""Why the hub couldn't be used, in a sentence: who answered, and what."""

import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from convert.recognise import HEAD, PAGE, as_text, page

SECONDS = 10


def reason(hub: Any, error: Exception, repository: str) -> str:
    """Says why a request to the hub failed.

    Args:
        hub: The package huggingface_hub.
        error: What it raised.
        repository: What was asked for.

    Returns:
        A sentence that names the host.
    """
    endpoint = hub.constants.ENDPOINT
    if hub.constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so {endpoint} isn't asked."
    if isinstance(error, hub.errors.GatedRepoError):
        return (
            f"{endpoint} gives {repository} only to those who accepted its licence: do so at "
            f"{endpoint}/{repository}, then `hf auth login`."
        )
    if isinstance(error, hub.errors.RepositoryNotFoundError):
        return f"{endpoint} has no {repository}, or wants a login (`hf auth login`)."
    if answer := _answer(f"{endpoint}/api/models/{repository}"):
        return answer
    said = " ".join((str(error) or type(error).__name__).split())
    return f"{endpoint} failed: {said.rstrip('.')}."


def _answer(url: str) -> str | None:
    """Asks once more, without the hub's package; None if the answer is a hub's."""
    asked = urlsplit(url).netloc
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as response:
            status, host = response.status, urlsplit(response.url).netloc
            body = response.read(HEAD)
    except urllib.error.HTTPError as error:
        status, host, body = error.code, urlsplit(error.url).netloc, error.read(HEAD)
    except (urllib.error.URLError, ssl.SSLError, TimeoutError, ConnectionError) as error:
        why = getattr(error, "reason", error)
        said = getattr(why, "strerror", None) or str(why) or type(why).__name__
        return f"{asked} can't be reached: {said}."
    except Exception as error:  # an address that is none, an answer that isn't HTTP's
        return f"{url} gives no answer: {' '.join(str(error).split()).rstrip('.')}."
    text = as_text(body) or ""
    via = f" (asked was {asked})" if host != asked else ""
    if PAGE.match(text):
        return (
            f"{host} answered with {page(text)}{via}, status {status}, not as the hub does: open "
            "it in a browser, this network may want a login."
        )
    if text.lstrip().startswith(("{", "[")):
        return None if status == 200 else f"{host} refused{via}, status {status}: {text[:80]}."
    return f"{host} answered {text[:80]!r}{via}, status {status}, not as the hub does."
