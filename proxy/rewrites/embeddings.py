"""Embeddings with a default model: `/embeddings`."""

from proxy.jsontext import Members, member

TARGET = b"/v1/embeddings"
DEFAULT_MODEL = "text-embedding-3-large"


def embedding(members: Members) -> Members:
    """Return the members of an embeddings request: all that came, and a model where there is none."""
    model = members.get("model")
    if model is not None and model.value not in (None, ""):
        return members
    return members | {"model": member("model", DEFAULT_MODEL)}
