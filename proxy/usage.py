"""What an answer says of its model and of the tokens that it took, under the names of each part of the API."""

import re

MOST = 10**9  # from there on it is no count, whatever it was that the upstream said
LONGEST_NAME = 256

# `input` and `output` are the whole; the others are parts of them, `total` their sum.
KINDS = (
    *("input", "cached", "output", "reasoning", "total"),
    *("input_text", "input_audio", "input_image", "output_text", "output_audio", "output_image"),
)

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
    "input_token_details": INPUT_DETAILS,  # transcriptions, Realtime
    "completion_tokens_details": OUTPUT_DETAILS,
    "output_tokens_details": OUTPUT_DETAILS,
    "output_token_details": OUTPUT_DETAILS,  # Realtime
}

# A POST that changes or cancels what is there already answers with it, and with the usage of then.
TOLD_AGAIN = re.compile(rb"[^?]*/(?:(?:chat/completions|runs)/[^/?]+|cancel)/?(?:\?|\Z)")

Usage = dict[str, int]  # tokens by kind, as far as the answer says


def is_counted(method: str, target: bytes) -> bool:
    """Tell whether the answer to a call tells of tokens that no other answer told of before."""
    return method == "POST" and TOLD_AGAIN.match(target) is None


def usage_of(said: object) -> Usage | None:
    """Read the member `usage` of an answer; None if it counts no tokens, as where the time of an audio is billed."""
    if not isinstance(said, dict):
        return None
    counts: Usage = {}
    # To isinstance, true is a whole number too. Who answers with both names of a kind may fill in one of them.
    for name, n in said.items():
        if name in COUNTS:
            if type(n) is int and counts.get(kind := COUNTS[name], 0) <= n < MOST:
                counts[kind] = n
        elif name in DETAILS and isinstance(n, dict):
            kinds = DETAILS[name]
            for part, m in n.items():
                if part in kinds and type(m) is int and counts.get(kind := kinds[part], 0) <= m < MOST:
                    counts[kind] = m
    return counts or None


def model_of(name: object) -> str | None:
    """Return the name of a model, if it is one that can be shown."""
    return name if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable() else None
