"""Who may call, and with which credentials the call goes on.

First clean, then sign: `admit` takes the client's key out, `Relay` drops the names in `withheld`, and only then is
`signature` added.
"""

import hmac
from collections.abc import Iterable

from proxy.errors import Pairs, Unauthorized
from proxy.headers import first
from proxy.settings import Settings

CARRIERS = frozenset((b"x-api-key", b"authorization", b"api-key"))
CREDENTIALS = frozenset((b"authorization", b"api-key"))


class Access:
    """The check at the door, by the mode that the settings put in force (see `Settings.mode`).

    `withheld` are the (lower-case) names of fields that never go upstream in this mode. `signs` tells whether calls go
    on with the proxy's own credentials.
    """

    def __init__(self, settings: Settings) -> None:
        names = settings.key_names or [f"key-{number}" for number, _ in enumerate(settings.client_keys, 1)]
        self._keys = tuple((name, key.encode()) for name, key in zip(names, settings.client_keys, strict=True))
        self._signature: Pairs = []
        self._defaults: Pairs = []
        self.withheld: frozenset[bytes] = frozenset()
        self._field = settings.key_field
        self.signs = settings.mode in ("swap", "open")
        if self.signs:
            self.withheld = CREDENTIALS
            if settings.openai_api_key:
                self._signature = self.presented([(b"authorization", b"Bearer " + settings.openai_api_key.encode())])
            for name, value in (
                (b"openai-project", settings.openai_project),
                (b"openai-organization", settings.openai_organization),
            ):
                if value:
                    self._defaults.append((name, value.encode()))

    def admit(self, pairs: Pairs, also: Iterable[bytes] = ()) -> tuple[Pairs, str | None]:
        """Return the fields of a request without those that carry a client key and are not `withheld`, and its name.

        The key may stand in `X-API-Key`, in `Authorization: Bearer` or in `api-key`, or be one of those that were shown
        `also`. Without names in the settings, the first key there is called `key-1`. Raises `Unauthorized` if there is
        none. Where nothing is checked, the fields come back as they are.
        """
        if not self._keys:
            return pairs, None
        shown = [(pair, self._name_of(_shown(*pair))) for pair in pairs if pair[0] in CARRIERS]
        names = [name for _, name in shown if name] or [name for key in also if (name := self._name_of(key))]
        if not names:
            raise Unauthorized("the client key is missing or wrong")
        if self.withheld:
            return pairs, names[0]  # where they stand, nothing of the client's goes on anyway
        carrying = [pair for pair, name in shown if name]
        return [pair for pair in pairs if pair not in carrying], names[0]

    def signature(self, pairs: Pairs) -> Pairs:
        """Return the credentials to add to a call with these fields."""
        if not self._defaults:
            return self._signature
        return self._signature + [pair for pair in self._defaults if first(pairs, pair[0]) is None]

    def presented(self, pairs: Pairs) -> Pairs:
        """Return credentials so that the upstream takes them: Azure's resources want a key in a field of its own."""
        if self._field == b"authorization":
            return pairs
        return [
            (self._field, value.removeprefix(b"Bearer ")) if name == b"authorization" else (name, value)
            for name, value in pairs
        ]

    def is_client_key(self, given: bytes) -> bool:
        """Tell whether this is one of the client keys."""
        return self._name_of(given) is not None

    def _name_of(self, given: bytes) -> str | None:
        # Every key is compared, and each in constant time, so that the time tells nothing of which one was near.
        found = None
        for name, key in self._keys:
            if hmac.compare_digest(given, key):
                found = name
        return found


def _shown(name: bytes, value: bytes) -> bytes:
    """Return the key that a carrier shows: the value, less the scheme where the field has one (RFC 9110 11.4)."""
    if name == b"authorization":
        scheme, _, value = value.partition(b" ")
        if scheme.lower() != b"bearer":
            return b""
    return value.strip()
