"""A company's network on loopback: servers with certificates of its own authority, and the proxy that leads to them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import trustme

HOST = "server.example"
"""Name that only the proxy knows, and that the certificate is for, beside 127.0.0.1."""


@dataclass
class Network:
    """The authority's certificate, and the ports of the servers behind it."""

    bundle: Path
    context: ssl.SSLContext
    tunnels: list[str] = field(default_factory=list)
    """Targets that the proxy was asked for."""


def new_network(folder: Path) -> Network:
    authority = trustme.CA()
    bundle = folder / "company.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "127.0.0.1").configure_cert(context)
    return Network(bundle, context)


@contextmanager
def serve_tls(network: Network, url: str) -> Iterator[int]:
    """Put the network's certificate before a plain server; yields the port for https."""
    port = int(url.rpartition(":")[2])

    def handle(client: socket.socket, _: Callable[[], bytes]) -> None:
        with suppress(OSError), network.context.wrap_socket(client, server_side=True) as secure:
            _pump(secure, port)

    with _serve(handle) as own:
        yield own


@contextmanager
def serve_proxy(network: Network) -> Iterator[str]:
    """A proxy for HTTPS that takes every name for this machine; yields its address."""

    def handle(client: socket.socket, readline: Callable[[], bytes]) -> None:
        target = readline().split()[1].decode()
        while readline().strip():
            pass
        network.tunnels.append(target)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        _pump(client, int(target.rpartition(":")[2]))

    with _serve(handle) as own:
        yield f"http://127.0.0.1:{own}"


@contextmanager
def _serve(handle: Callable[[socket.socket, Callable[[], bytes]], None]) -> Iterator[int]:
    class Handler(StreamRequestHandler):
        rbufsize = 0

        def handle(self) -> None:
            with suppress(OSError):
                handle(self.connection, self.rfile.readline)

    class Server(ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def _pump(client: socket.socket, port: int) -> None:
    """Carry bytes both ways between a client and a local port until one side ends."""
    with socket.create_connection(("127.0.0.1", port)) as server:

        def back() -> None:
            _copy(server, client)

        thread = threading.Thread(target=back, daemon=True)
        thread.start()
        _copy(client, server)
        thread.join(5)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for side in (source, target):
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
