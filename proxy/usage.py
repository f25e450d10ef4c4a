"""What an answer says of the tokens that it took, under the names of each part of the API."""

from typing import NamedTuple

MOST = 2**53 - 1  # RFC 8259 6: whole numbers beyond it are not read alike everywhere

INPUT_DETAILS = {
    "cached_tokens": "cached",
    "text_tokens": "input_text",
    "audio_tokens": "input_audio",
    "image_tokens": "input_image",
}
OUTPUT_DETAILS = {
    "reasoning_tokens": "reasoning",
    "text_tokens": "output_text",
    "audio_tokens": "output_audio",
    "image_tokens": "output_image",
}
COUNTS = {
    "prompt_tokens": "input",  # chat completions, completions, embeddings
    "input_tokens": "input",  # responses, images, transcriptions
    "completion_tokens": "output",
    "output_tokens": "output",
    "total_tokens": "total",
}
DETAILS = {
    "prompt_tokens_details": INPUT_DETAILS,
    "input_tokens_details": INPUT_DETAILS,
    "input_token_details": INPUT_DETAILS,  # transcriptions
    "completion_tokens_details": OUTPUT_DETAILS,
    "output_tokens_details": OUTPUT_DETAILS,
}


class Usage(NamedTuple):
    """Tokens by kind; None where the answer does not say. `cached` is a part of `input`, `reasoning` of `output`.

    A tuple, since making a frozen dataclass of so many fields takes five times as long.
    """

    input: int | None = None
    cached: int | None = None
    output: int | None = None
    reasoning: int | None = None
    total: int | None = None
    input_text: int | None = None
    input_audio: int | None = None
    input_image: int | None = None
    output_text: int | None = None
    output_audio: int | None = None
    output_image: int | None = None


def usage_of(said: object) -> Usage | None:
    """Read the member `usage` of an answer; None if it counts no tokens, as where the time of an audio is billed."""
    if not isinstance(said, dict):
        return None
    counts: dict[str, int] = {}
    _count(counts, COUNTS, said)
    for name, kinds in DETAILS.items():
        if name in said and isinstance(details := said[name], dict):
            _count(counts, kinds, details)
    return Usage(**counts) if counts else None


def _count(counts: dict[str, int], kinds: dict[str, str], said: dict[str, object]) -> None:
    for name, n in said.items():
        if name in kinds and type(n) is int and 0 <= n <= MOST:  # to isinstance, true is a whole number too
            counts[kinds[name]] = n
