"""Takes secrets out of texts that are not ours: exception texts, upstream messages, names that a client chose.

The ledger is an allow-list, and nothing to redact is better than redaction; this is for what is on that list and yet
was written by others. It looks for what keys look like, for names that a secret follows, and for the secrets that this
proxy was given. Every repetition in the patterns is possessive or bounded, so that no text makes them slow.
"""

import json
import logging
import re
import time
from collections.abc import Iterable
from urllib.parse import quote

MASK = "***"
LONGEST = 32768  # characters of a text that are looked at; what is beyond is cut off
EDGE = 512  # no secret of an unknown kind is longer
SHORT = 8  # a secret below that many characters is masked only where it stands alone

QUOTED = r"""b?"(?:\\.|[^"\\])*+"?|b?'(?:\\.|[^'\\])*+'?"""
NAMES = r"""(?:proxy-)?authorization|api[-_ ]?key|(?:subscription|security)[-_]key|(?:client[-_])?secret|passw(?:or)?d
    |(?:(?:access|refresh|id|auth|session)[-_]?)?token|sig(?:nature)?"""

# What is looked for, and what stands in its place. Before each stands of what a text must have one, in small letters:
# looking for that first is so much cheaper that most texts cost next to nothing.
PATTERNS = tuple(
    (tuple(hints.split()), re.compile(pattern, re.IGNORECASE | re.VERBOSE), replacement)
    for hints, pattern, replacement in (
        # OpenAI's keys, those of projects and services included, and those of a browser's realtime session.
        ("sk- ek_", r"\b(?:sk-|ek_)[\w-]{8,}+|sk-[\w-]{16,}+", MASK),
        # JSON Web Tokens (RFC 7519), which Azure's Entra ID gives out.
        ("eyj", r"\beyJ[\w-]{8,}+\.[\w-]++(?:\.[\w-]*+)?", MASK),
        # Cookies hold several values, so that all goes to the end of the line, or of the quotation.
        ("cookie", rf"""(cookie2?["']?\s{{0,9}}+[:=,]\s{{0,9}}+)(?:{QUOTED}|[^\r\n]++)""", rf"\1{MASK}"),
        # A name and its value, as JSON, a query, a form, a header, or the repr of a pair spells them.
        (
            ": = , %3",
            rf"""((?<![a-z])(?:{NAMES})\\{{0,3}}+["']?\s{{0,9}}+(?:[:=,]|%3[ad])\s{{0,9}}+\\{{0,3}}+)
                (?:{QUOTED}|(?:(?:bearer|basic)\s++)?[^\s"'\\&;,<>)}}\]]++)""",
            rf"\1{MASK}",
        ),
        # A scheme and what is shown with it (RFC 9110 11.4), also outside a header.
        ("bearer basic", r"""\b(bearer|basic)(\s{1,9}+|%20|\+)[^\s"'<>,;&]++""", rf"\1\2{MASK}"),
        # Azure's keys have no shape of their own, 32 hexadecimal digits or 84 letters: only the word before tells.
        ("key", r"(key\b[^\n]{0,40}?\b)(?:[0-9a-f]{32}|[0-9a-z]{84})\b", rf"\1{MASK}"),
        # The user's part of a URL (RFC 3986 3.2.1).
        ("://", r"(://)[^\s/?\#@]{1,512}+@", rf"\1{MASK}@"),
    )
)


class Redaction:
    """Masks secrets in texts; `secrets` are those that it is to know by heart, whatever they look like."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        secrets = sorted(secrets, key=len, reverse=True)
        forms = sorted({form for secret in secrets for form in _spellings(secret) if form}, key=len, reverse=True)
        self._known = [form for form in forms if len(form) >= SHORT]
        encoded = "|".join(_any_encoding(secret) for secret in secrets if len(secret) >= SHORT)
        self._encoded = re.compile(encoded) if encoded else None
        self._edge = max([EDGE, *map(len, forms), *(3 * len(secret.encode("utf-8", "replace")) for secret in secrets)])
        short = "|".join(re.escape(form) for form in forms if len(form) < SHORT)
        self._short = re.compile(rf"(?<![\w-])(?:{short})(?![\w-])") if short else None

    def __call__(self, text: str, longest: int = LONGEST) -> str:
        """Return the text with every secret masked, cut off where it is longer than any that people read.

        No more than `longest` characters are looked at: by what they are, 1 us is enough for 1 to 1000 of them.
        """
        if len(text) <= longest:
            return self._masked(text)
        # The cut may go through a secret, and half of one is known by nothing: so that the edge goes too.
        return self._masked(text[:longest])[: -self._edge] + " [cut off]"

    def _masked(self, text: str) -> str:
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, MASK)
        if self._encoded and "%" in text:
            text = self._encoded.sub(MASK, text)
        if self._short:
            text = self._short.sub(MASK, text)
        small = text.lower()
        for hints, pattern, replacement in PATTERNS:
            for hint in hints:
                if hint in small:
                    text = pattern.sub(replacement, text)
                    break
        return text


class RedactedFormatter(logging.Formatter):
    """Formats a record as usual, its traceback included, and masks what is secret in all of it.

    Its time is spelled as that of an entry on stdout is, in UTC (RFC 3339), so that the two can be laid side by side.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"
    redact = Redaction()  # replaced once the secrets are known

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return self.redact(super().format(record))


def _any_encoding(secret: str) -> str:
    """Return a pattern for a secret any of whose characters may be percent-encoded, in digits of either case."""
    encoded = ("".join(f"%(?i:{byte:02x})" for byte in character.encode("utf-8", "replace")) for character in secret)
    return "".join(f"(?:{re.escape(plain)}|{code})" for plain, code in zip(secret, encoded, strict=True))


def _spellings(secret: str) -> set[str]:
    """Return how a secret may be spelled: as it is, in a query, in JSON, and as bytes that were read as Latin-1."""
    return {
        secret,
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        secret.encode("utf-8", "replace").decode("latin-1"),
    }
