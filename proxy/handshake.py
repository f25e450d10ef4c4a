"""What a client's offer of WebSocket says (RFC 6455 4), and where a key may stand in it. Pure; raises `Failure`."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from proxy.errors import BadRequest, Fields, Pairs, UpgradeRequired

VERSION = b"13"
# RFC 9110 7.8, 15.5.22: a 426 says which protocol would do, in a field that ends with the connection.
OURS = [(b"connection", b"upgrade, close"), (b"upgrade", b"websocket"), (b"sec-websocket-version", VERSION)]
PLAIN = [(b"connection", b"upgrade, close"), (b"upgrade", b"HTTP/1.1")]
NONCE = b"sec-websocket-key"
SUBPROTOCOL = b"sec-websocket-protocol"
OF_THE_HANDSHAKE = b"sec-websocket-"  # each hop has its own
KEY_ITEM = b"openai-insecure-api-key."  # a browser sets no header, so that a key stands behind this as a subprotocol
KEY_PARAMETER = b"security_key"


def offers_websocket(pairs: Pairs, version: str) -> bool:
    """Tell whether a request that offers to speak another protocol means this one (RFC 9110 7.8: not with HTTP/1.0)."""
    offers = [value.lower() for name, value in pairs if name == b"upgrade"]
    return offers == [b"websocket"] and version == "1.1"


def examine_handshake(method: str, pairs: Pairs, fields: Fields) -> None:
    """Raise `Failure` for what RFC 6455 4.2.1 wants refused."""
    if method != "GET":
        raise BadRequest("A WebSocket handshake is a GET")
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        raise BadRequest("A WebSocket handshake has no body")
    if fields.get(b"sec-websocket-version") != VERSION:
        raise UpgradeRequired("WebSocket is spoken here in version 13", headers=OURS)
    nonces = [value for name, value in pairs if name == NONCE]
    if len(nonces) != 1 or not _is_nonce(nonces[0]):
        raise BadRequest("Sec-WebSocket-Key has to be 16 bytes in base64")


def _is_nonce(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except binascii.Error:
        return False


def without_handshake(pairs: Pairs) -> Pairs:
    """Return the fields less those of the handshake itself, the offered subprotocols among them."""
    return [pair for pair in pairs if not pair[0].startswith(OF_THE_HANDSHAKE) and pair[0] != b"content-length"]


def offered_subprotocols(pairs: Pairs) -> list[bytes]:
    """Return the subprotocols in the client's order of preference."""
    values = (value for name, value in pairs if name == SUBPROTOCOL)
    return [item for value in values for part in value.split(b",") if (item := part.strip())]


def split_query_keys(target: bytes) -> tuple[bytes, list[bytes]]:
    """Return the target without its parameters `security_key`, every other byte as it was, and what they held."""
    path, mark, query = target.partition(b"?")
    kept, keys = [], []
    for parameter in query.split(b"&"):
        name, _, value = parameter.partition(b"=")
        if unquote_to_bytes(name) == KEY_PARAMETER:
            keys.append(unquote_to_bytes(value.replace(b"+", b" ")))
        else:
            kept.append(parameter)
    if not keys:
        return target, keys
    return path + (mark + b"&".join(kept) if kept else b""), keys
