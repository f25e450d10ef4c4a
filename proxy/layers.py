"""The layers that settings come from: the environment over `.env.local` over `.env`, and what is wrong with them."""

import difflib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from dotenv.parser import Binding, parse_stream

FILES = (".env.local", ".env")  # the stronger one first
OUR_PREFIXES = ("OXY_", "PROXY_", "OPENAI_PROXY_")

T = TypeVar("T")


class Layers:
    """The layers of settings, and what was wrong with them. `names` are all that were asked for."""

    def __init__(self, environ: Mapping[str, str], folder: Path | None) -> None:
        self.complaints: list[str] = []
        self.names: set[str] = set()
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
            return parse(given)
        except ValueError as problem:
            self.complaints.append(f"{name}: {problem}")
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
        found = self.take(name, parse, None) or self.take(name.lower(), parse, None)
        self.names.discard(name.lower())
        return found

    def notes(self) -> Iterator[str]:
        """Yield names that look like ours and are not: a mistyped key must not pass in silence.

        In the environment there are other programs' too, so that only those count that are nearly one of ours.
        """
        for place, given in (("environment", self._layers[0]), *self._files.items()):
            for name in given:
                if name.startswith(OUR_PREFIXES) and name not in self.names:
                    near = 0.6 if place in FILES else 0.9
                    close = difflib.get_close_matches(name, self.names, n=1, cutoff=near)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    if hint or place in FILES:
                        yield f"{place}: {name} is not a setting{hint}"

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


def _line(binding: Binding) -> int:
    """Return where a binding stands; what the parser calls its line is that of the blank ones before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
