"""What the demo says and how it counts: pure functions, no I/O, nothing left to chance.

One rule for tokens holds everywhere: a token is a word or a punctuation mark, with the space before it. What is
streamed is one token at a time, so that whoever counts the pieces finds the numbers in `usage`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")
SPOKEN = ("content", "text", "output", "arguments", "tool_calls", "function")
QUOTED_LENGTH = 200


def tokens(text: str) -> list[str]:
    """Cut a text into its tokens; joined again they are the text, less white space at its end."""
    return TOKEN.findall(text.rstrip())


def dig(value: object, *names: str) -> Any:
    """Follow names into nested objects; None where one is missing or is no object."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def objects(value: object) -> list[Json]:
    """Return the objects in what should be a list of them."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def words(value: object) -> str:
    """Return all that counts as said in a message, an item, a prompt or a list of them; a number is a token."""
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list):
        return " ".join(filter(None, map(words, value)))
    if isinstance(value, dict):
        return words([value.get(name) for name in SPOKEN])
    return ""


def several(value: object) -> list[str]:
    """Return the inputs in a text, a list of texts, a list of tokens, or a list of such lists."""
    if isinstance(value, list) and not all(isinstance(item, int) for item in value):
        return [words(item) for item in value]
    return [words(value)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the demo says to one request: words, or the arguments of a call of the function `tool`."""

    tokens: list[str]
    tool: str | None = None
    cut: bool = False

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def answer(body: Json, turns: list[Json], *, form: object, limit: int) -> Said:
    """Answer the last of the turns: call a tool, fill in a form (an output format in the API's shape), or just talk.

    A user's message is answered with a call of the first function on offer, if there is one, a tool's result in words.
    """
    last = turns[-1]
    if last.get("role") == "tool" or last.get("type") == "function_call_output":
        return _said(
            f'The tool answered: "{_quote(last)}". A real model would now put that into words of its own.', limit
        )
    tool = _tool(body) if last.get("role") == "user" else None
    if tool is not None:
        return _said(
            json.dumps(sample(tool.get("parameters") or {"type": "object"})), limit, tool=str(tool.get("name"))
        )
    schema = _schema(form)
    if schema is not None:
        return _said(json.dumps(sample(schema)), limit)
    asked = [turn for turn in turns if turn.get("role") == "user"]
    return _said(reply(asked[-1] if asked else last, turn=len(asked)), limit)


def reply(question: object, *, turn: int = 1) -> str:
    """Return the demo's one answer in words."""
    quote = _quote(question)
    heard = f'You said: "{quote}".' if quote else "You sent no text."
    again = f" That was message {turn} of our talk." if turn > 1 else ""
    return (
        f"Hello from the Oxy demo! {heard}{again} It went through the proxy to a small stand-in for the OpenAI API: "
        "no model was asked, nothing was billed. For the real one, start Oxy with your OPENAI_API_KEY, without --demo."
    )


def sample(schema: object, *, name: str = "value", root: object = None, depth: int = 5) -> Any:
    """Build a simple value of the shape that a JSON schema asks for: a free text says `demo` and its property's name.

    Every property is filled in, the first of several choices is taken. Where schemas nest too deep it says null.
    """
    root = schema if root is None else root
    if reference := dig(schema, "$ref"):
        schema = dig(root, *str(reference).removeprefix("#/").split("/"))
    if not isinstance(schema, dict) or not depth:
        return None
    if "const" in schema:
        return schema["const"]
    for choices in (schema.get(key) for key in ("enum", "anyOf", "oneOf", "allOf")):
        if isinstance(choices, list) and choices:
            first = choices[0]
            return sample(first, name=name, root=root, depth=depth - 1) if isinstance(first, dict) else first
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "string":
            return f"demo {name}"
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "array":
            return [sample(schema.get("items"), name=name, root=root, depth=depth - 1)]
        case "null":
            return None
    properties = schema.get("properties")
    members = properties.items() if isinstance(properties, dict) else ()
    return {member: sample(inner, name=member, root=root, depth=depth - 1) for member, inner in members}


def _said(text: str, limit: int, *, tool: str | None = None) -> Said:
    every = tokens(text)
    return Said(tokens=every[:limit], tool=tool, cut=len(every) > limit)


def _quote(value: object) -> str:
    text = " ".join(words(value).split())
    return text if len(text) <= QUOTED_LENGTH else f"{text[:QUOTED_LENGTH]}..."


def _tool(body: Json) -> Json | None:
    """Return the function that `tool_choice` names, else the first; chat's shape and that of Responses will do."""
    choice = body.get("tool_choice")
    name = dig(choice, "function", "name") or dig(choice, "name")
    offered = [dig(tool, "function") or tool for tool in objects(body.get("tools")) if tool.get("type") == "function"]
    fitting = [tool for tool in offered if isinstance(tool, dict) and name in (None, tool.get("name"))]
    return fitting[0] if fitting and choice != "none" else None


def _schema(form: object) -> object:
    if dig(form, "type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return dig(form, "json_schema", "schema") or dig(form, "schema")
