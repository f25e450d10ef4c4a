"""What the demo makes that is not text: vectors, a tone, a picture, each the same for the same words."""

import functools
import hashlib
import io
import math
import struct
import wave
import zlib

SIDE = 1024  # pixels, the size that every image model offers


def vector(text: str, size: int) -> list[float]:
    """Return a unit vector that the text alone decides; a shorter one points where the longer one's beginning does."""
    digest = hashlib.shake_128(text.encode(errors="replace")).digest(4 * size)
    raw = struct.unpack(f"<{size}i", digest)
    length = math.hypot(*raw)
    return [number / length for number in raw]


@functools.cache
def tone() -> bytes:
    """Return half a second of a fading A (440 Hz) as a WAV file: 8 kHz, 16 bits, one channel."""
    rate, count = 8000, 4000
    swing = (math.sin(math.tau * 440 * at / rate) * (1 - at / count) * 16000 for at in range(count))
    file = io.BytesIO()
    with wave.open(file, "wb") as track:
        track.setparams((1, 2, rate, count, "NONE", "not compressed"))
        track.writeframes(b"".join(struct.pack("<h", round(level)) for level in swing))
    return file.getvalue()


def picture(prompt: str) -> bytes:
    """Return a PNG file of SIDE by SIDE pixels: a slanting blend of two colours that the prompt alone decides."""
    one, other = struct.unpack("3s3s", hashlib.sha256(prompt.encode(errors="replace")).digest()[:6])
    blend = b"".join(
        bytes((start * (2 * SIDE - at) + end * at) // (2 * SIDE) for start, end in zip(one, other, strict=True))
        for at in range(2 * SIDE)
    )
    rows = b"".join(b"\0" + blend[3 * down : 3 * (down + SIDE)] for down in range(SIDE))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)  # eight bits each of red, green and blue
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
