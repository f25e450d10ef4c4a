"""The least that a proxy does in Python, on the same libraries: what Oxy's figures may be measured against.

It reads each head with llhttp, drops and adds as many fields as Oxy does, and writes both heads anew. It checks,
bounds, counts and logs nothing, knows no failure, and takes bodies of known length in one piece only: no pool, no task
and no future, each client's connection has one upstream of its own.
"""

import asyncio
import os
import sys

import httptools
import uvloop

TARGET = ("127.0.0.1", int(sys.argv[2]))
OURS = [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer " + os.environ["OPENAI_API_KEY"].encode())]
ID = (b"x-proxy-request-id", b"0123456789abcdef0123456789abcdef")
END_HERE = {b"host", b"authorization", b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade"}


class Side(asyncio.Protocol):
    """One connection, and what is read from it."""

    def __init__(self) -> None:
        self.other: Side
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.other.transport.close()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.fields, self.body = [], b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def pass_on(self, start: bytes, fields: list[tuple[bytes, bytes]]) -> None:
        crossing = [field for field in self.fields if field[0] not in END_HERE]
        head = b"\r\n".join([start, *map(b": ".join, crossing), *map(b": ".join, fields), b"", b""])
        self.other.transport.write(head + self.body)


class Client(Side):
    def __init__(self) -> None:
        super().__init__()
        self.parser = httptools.HttpRequestParser(self)
        self.other = Upstream(self)
        self.dialling = asyncio.ensure_future(asyncio.get_running_loop().create_connection(lambda: self.other, *TARGET))

    def data_received(self, data: bytes) -> None:
        if self.dialling.done():
            self.parser.feed_data(data)
        else:
            self.dialling.add_done_callback(lambda _: self.parser.feed_data(data))

    def on_url(self, target: bytes) -> None:
        self.target = target

    def on_message_complete(self) -> None:
        self.pass_on(b"%b %b HTTP/1.1" % (self.parser.get_method(), self.target), OURS)


class Upstream(Side):
    def __init__(self, client: Client) -> None:
        super().__init__()
        self.parser = httptools.HttpResponseParser(self)
        self.other = client

    def on_message_complete(self) -> None:
        self.pass_on(b"HTTP/1.1 %d OK" % self.parser.get_status_code(), [ID])


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
