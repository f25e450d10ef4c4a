"""The layers that settings come from: the environment over `.env.local` over `.env`, and what is wrong with them."""

import difflib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from dotenv.parser import Binding, parse_stream

FILES = (".env.local", ".env")  # the stronger one first
OUR_PREFIXES = ("OXY_", "PROXY_", "OPENAI_PROXY_")
# What many programs read, in small letters too. Which of them we do hangs on the target, and on the others.
OF_MANY = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

QUOTATION = "\"'"

T = TypeVar("T")


class Layers:
    """The layers of settings, and what was wrong with them. `names` were asked for; of those, `refused` were no use."""

    def __init__(self, environ: Mapping[str, str], folder: Path | None) -> None:
        self.complaints: list[str] = []
        self.names: set[str] = set()
        self.refused: set[str] = set()
        self._files = {name: self._read(folder / name) for name in FILES if folder is not None}
        self._layers = (environ, *self._files.values())

    def take(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """Return the strongest value of that name as `parse` understands it, else the default, with a complaint."""
        self.names.add(name)
        given = next((value for layer in self._layers if (value := layer.get(name, "").strip())), None)
        if given is None:
            return default
        try:
            if not given.isprintable():  # nor could it stand in a header or in a host name
                raise ValueError("it holds a character that cannot be printed")
            if len(given) > 1 and given[0] == given[-1] and given[0] in QUOTATION:
                raise ValueError("it stands in quotation marks, which `docker --env-file` leaves in: take them out")
            return parse(given)
        except ValueError as problem:
            self.complaints.append(f"{name}: {problem}")
            self.refused.add(name)
            return default

    def one_of(self, *names: str, parse: Callable[[str], T]) -> T | None:
        """Return the value of the first name that is set, None if none is; Azure's may not say something else."""
        given = {name: value for name in names if (value := self.take(name, parse, None)) is not None}
        for name, value in given.items():
            first, taken = next(iter(given.items()))
            if name.startswith("AZURE_") and value != taken:
                self.complaints.append(f"{name} and {first} are both set, and differ: remove one of the two")
        return next(iter(given.values()), None)

    def either(self, name: str, parse: Callable[[str], T]) -> T | None:
        """Return the value of a name that may be written in small letters too, or None."""
        return self.take(name, parse, None) or self.take(name.lower(), parse, None)

    def notes(self) -> Iterator[str]:
        """Yield names that look like ours and are not: a mistyped key must not pass in silence.

        Names of other programs are left alone, so that one counts that is nearly one of ours; in the files, where most
        are ours, also one that begins like them, and one of OpenAI's that lacks a word.
        """
        for place, given in (("environment", self._layers[0]), *self._files.items()):
            for name in given:
                if name in self.names or name.upper() in OF_MANY:
                    continue
                if (note := self._note(place, name)) is not None:
                    yield note

    def _note(self, place: str, name: str) -> str | None:
        in_file = place in FILES
        ours = in_file and name.upper().startswith(OUR_PREFIXES)
        close = difflib.get_close_matches(name.upper(), self.names, n=1, cutoff=0.6 if ours else 0.9)
        meant = close or [known for known in sorted(self.names) if in_file and lacks_a_word(name, known)]
        if not (meant or ours):
            return None
        hint = f"; did you mean {meant[0]}?" if meant else ""
        return f"{place}: {name} is not a setting{hint}"

    def _read(self, path: Path) -> Mapping[str, str]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
            self.complaints.append(f"{path.name} cannot be read: {reason}")
            return {}
        given = {}
        for binding in parse_stream(io.StringIO(text)):
            if binding.error or (binding.key is not None and binding.value is None):
                self.complaints.append(f"{path.name} line {_line(binding)}: this is not NAME=value")
            elif binding.key is not None and binding.value is not None:
                given[binding.key] = binding.value  # as written: a `$` in a key is a `$`
        return given


def lacks_a_word(name: str, known: str) -> bool:
    """Tell whether a name is one of OpenAI's without one of its words, as OPENAI_KEY is."""
    words, all_of_them = set(name.upper().split("_")), set(known.split("_"))
    return "OPENAI" in words and words < all_of_them and len(words) == len(all_of_them) - 1


def _line(binding: Binding) -> int:
    """Return where a binding stands; what the parser calls its line is that of the blank ones before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
