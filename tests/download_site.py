"For the tests of downloads: a server on this machine that hangs up, changes its files and refuses; archives to serve."

import hashlib
import http.server
import io
import random
import socket
import struct
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from types import SimpleNamespace

BODY = random.Random(0).randbytes(300_000)


def sha(body):
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    "Serves `server.files`: path -> what to do (see `Site.put`)"

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        file, first = self.server.files.get(self.path), self.headers.get("Range")
        entry = SimpleNamespace(
            path=self.path,
            range=first,
            if_range=self.headers.get("If-Range"),
            sent=0,
            due=0,
            agent=self.headers.get("User-Agent"),
        )
        self.server.log.append(entry)
        status = file.status.pop(0) if file and file.status else 404 if file is None else 200
        if status >= 300:
            self.send_response(status)
            if status < 400:
                self.send_header("Location", file.location)
            self.send_header("Content-Length", 0)
            return self.end_headers()
        if file.silent:
            return time.sleep(file.silent)
        start = (
            int(first[6:-1])
            if first
            and file.ranges
            and entry.if_range in (None, file.tag or file.date, file.trusting and entry.if_range)
            else 0
        )
        if start >= len(file.body) > 0:
            self.send_response(416)
            self.send_header("Content-Length", 0)
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(file.body) - 1}/{len(file.body)}")
        if file.tag:
            self.send_header("ETag", file.tag)
        if file.date:
            self.send_header("Last-Modified", file.date)
        self.send_header("Content-Type", file.type)
        self.send_header(
            *(("Transfer-Encoding", "chunked") if file.chunked else ("Content-Length", len(file.body) - start))
        )
        self.end_headers()
        self.send_body(file, file.body[start:], entry)

    def send_body(self, file, body, entry):
        cut = file.cuts.pop(0) if file.cuts else None
        part = body[:cut]
        entry.due = len(part)
        pieces = [part[i : i + 10_000] for i in range(0, len(part), 10_000)]
        self.wfile.write(
            b"".join(b"%x\r\n%s\r\n" % (len(o), o) for o in pieces) + b"0\r\n\r\n" * (cut is None)
            if file.chunked
            else part
        )
        self.wfile.flush()
        entry.sent = len(part)
        if cut is not None and file.hold:
            time.sleep(file.hold)
        if cut is not None and file.reset:
            time.sleep(0.1)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *args):
        pass

    def finish(self):
        with suppress(OSError):
            super().finish()


class Site:
    "A server on this machine"

    def __init__(self, context=None):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.files, self.server.log, self.server.daemon_threads = {}, [], True
        self.server.handle_error = lambda *args: None
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"http{'s' if context else ''}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def put(self, name, body=BODY, cuts=(), status=(), **how):
        "Serve `body`; hang up after `cuts` bytes (one per request), answer with `status` (one per request)"
        defaults = dict(
            ranges=True,
            tag=f'"{hashlib.md5(body).hexdigest()}"',
            date="",
            trusting=False,
            chunked=False,
            reset=False,
            hold=0,
            silent=0,
            location="",
            type="application/octet-stream",
        )
        self.server.files[f"/{name}"] = SimpleNamespace(
            body=body, cuts=list(cuts), status=list(status), **defaults | how
        )
        return f"{self.address}/{name}"

    @property
    def log(self):
        return self.server.log

    @property
    def ranges(self):
        return [o.range for o in self.log]

    @property
    def sent(self):
        "Bytes of all answers; the client may have the last of them before this thread has noted it"
        end = time.monotonic() + 5
        while time.monotonic() < end and any(o.sent < o.due for o in self.log):
            time.sleep(0.01)
        return sum(o.sent for o in self.log)


@contextmanager
def local_site(monkeypatch):
    "A running site, and downloads that hardly pause between attempts"
    from dra_nb.data import fetch

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "_PAUSES", (0.01, 0.01, 0.01))
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def pack(file, members):
    "An archive of (name or TarInfo or ZipInfo) -> bytes, format by its ending"
    if file.name.endswith("zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
            for o, data in members:
                z.writestr(o, data)
        return file
    with tarfile.open(file, "w:" + file.name.partition(".tar.")[2]) as t:
        for o, data in members:
            info = o if isinstance(o, tarfile.TarInfo) else tarfile.TarInfo(o)
            if info.isreg():
                info.size = len(data)
            t.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return file


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
