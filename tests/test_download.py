"Downloads against a real server on this machine: cut, changed, wrong and refused files, killed processes, malicious and damaged archives."
import hashlib, http.server, io, os, random, shutil, signal, socket, ssl, stat, struct, subprocess, sys, tarfile, threading, time, zipfile
from types import SimpleNamespace

import numpy as np, pytest

from conftest import REPO, picture, python, succeeded
from dra_nb.core import DraError
from dra_nb.data import download as module
from dra_nb.data.catalog import Archive, Dataset, load_catalog, load_datasets, read_mvtec
from dra_nb.data.download import download, fetch, file_digest, unpack

BODY = random.Random(0).randbytes(300_000)
def sha(body): return f"sha256:{hashlib.sha256(body).hexdigest()}"

class Handler(http.server.BaseHTTPRequestHandler):
    "Serves `server.files`: path -> what to do (see `Site.put`)"
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        file, first = self.server.files.get(self.path), self.headers.get("Range")
        entry = SimpleNamespace(path=self.path, range=first, if_range=self.headers.get("If-Range"), sent=0, due=0, agent=self.headers.get("User-Agent"))
        self.server.log.append(entry)
        status = file.status.pop(0) if file and file.status else 404 if file is None else 200
        if status >= 300:
            self.send_response(status)
            if status < 400: self.send_header("Location", file.location)
            self.send_header("Content-Length", 0)
            return self.end_headers()
        if file.silent: return time.sleep(file.silent)
        start = int(first[6:-1]) if first and file.ranges and entry.if_range in (None, file.tag or file.date, file.trusting and entry.if_range) else 0
        if start >= len(file.body) > 0:
            self.send_response(416); self.send_header("Content-Length", 0); return self.end_headers()
        self.send_response(206 if start else 200)
        if start: self.send_header("Content-Range", f"bytes {start}-{len(file.body) - 1}/{len(file.body)}")
        if file.tag: self.send_header("ETag", file.tag)
        if file.date: self.send_header("Last-Modified", file.date)
        self.send_header("Content-Type", file.type)
        self.send_header(*(("Transfer-Encoding", "chunked") if file.chunked else ("Content-Length", len(file.body) - start)))
        self.end_headers()
        self.send_body(file, file.body[start:], entry)

    def send_body(self, file, body, entry):
        cut = file.cuts.pop(0) if file.cuts else None
        part = body[:cut]
        entry.due = len(part)
        pieces = [part[i:i + 10_000] for i in range(0, len(part), 10_000)]
        self.wfile.write(b"".join(b"%x\r\n%s\r\n" % (len(o), o) for o in pieces) + b"0\r\n\r\n"*(cut is None) if file.chunked else part)
        self.wfile.flush()
        entry.sent = len(part)
        if cut is not None and file.hold: time.sleep(file.hold)
        if cut is not None and file.reset:
            time.sleep(0.1)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *args): pass
    def finish(self):
        try: super().finish()
        except OSError: pass

class Site:
    "A server on this machine"
    def __init__(self, context=None):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.files, self.server.log, self.server.daemon_threads = {}, [], True
        self.server.handle_error = lambda *args: None
        if context: self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"http{'s' if context else ''}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def put(self, name, body=BODY, cuts=(), status=(), **how):
        "Serve `body`; hang up after `cuts` bytes (one per request), answer with `status` (one per request)"
        defaults = dict(ranges=True, tag=f'"{hashlib.md5(body).hexdigest()}"', date="", trusting=False, chunked=False, reset=False, hold=0, silent=0,
                        location="", type="application/octet-stream")
        self.server.files[f"/{name}"] = SimpleNamespace(body=body, cuts=list(cuts), status=list(status), **defaults | how)
        return f"{self.address}/{name}"

    @property
    def log(self): return self.server.log
    @property
    def ranges(self): return [o.range for o in self.log]
    @property
    def sent(self):
        "Bytes of all answers; the client may have the last of them before this thread has noted it"
        end = time.monotonic() + 5
        while time.monotonic() < end and any(o.sent < o.due for o in self.log): time.sleep(0.01)
        return sum(o.sent for o in self.log)

@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "_PAUSES", (0.01, 0.01, 0.01))
    site = Site()
    yield site
    site.server.shutdown(); site.server.server_close()

def get(url, folder, digest="", size=0): return fetch(Archive(url, digest, size), folder, progress=False)

def refused(url, folder, *words, **published):
    "The message of a fetch that must fail and leave no file under the final name"
    with pytest.raises(DraError) as caught: get(url, folder, **published)
    message = str(caught.value)
    assert [w for w in (url, *words) if w not in message] == [], message
    assert not (folder/url.rsplit("/", 1)[-1]).exists()
    return message

def leftovers(folder): return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))

def stopped(url, folder, monkeypatch, **published):
    "Fetch until the first cut, as a process does that is stopped then"
    with monkeypatch.context() as m:
        m.setattr(module.time, "sleep", lambda s: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): get(url, folder, **published)

# ---- fetch: whole, cut, resumed

def test_whole(site, tmp_path, capsys):
    file = get(site.put("a.zip"), tmp_path/"new", sha(BODY), len(BODY))
    assert file == tmp_path/"new"/"a.zip" and file.read_bytes() == BODY and leftovers(tmp_path/"new") == ["a.zip"]
    assert site.ranges == [None] and capsys.readouterr().out == "" and "python" not in site.log[0].agent.lower()
    assert get(f"{site.address}/a.zip", tmp_path/"new", sha(BODY)) == file and len(site.log) == 1  # it is there

def test_no_digest_is_said(site, tmp_path, capsys):
    get(site.put("a.zip"), tmp_path)
    out = capsys.readouterr().out
    assert sha(BODY)[7:] in out and "none is published" in out

@pytest.mark.parametrize("published", [dict(digest=sha(BODY)), {}], ids=["digest", "no digest"])
def test_cuts_are_resumed_and_nothing_is_fetched_twice(site, tmp_path, published):
    url = site.put("a.zip", cuts=[150_000, 1, 100_000])
    assert get(url, tmp_path, **published).read_bytes() == BODY
    assert site.ranges == [None, "bytes=150000-", "bytes=150001-", "bytes=250001-"] and site.sent == len(BODY)
    assert {o.if_range for o in site.log[1:]} == {site.server.files["/a.zip"].tag} and leftovers(tmp_path) == ["a.zip"]

def test_many_cuts_are_survived_as_long_as_there_is_progress(site, tmp_path):
    url = site.put("a.zip", cuts=[20_000]*14)
    assert get(url, tmp_path).read_bytes() == BODY and site.sent == len(BODY) and len(site.log) == 15

def test_reset_connection(site, tmp_path):
    url = site.put("a.zip", cuts=[200_000], reset=True)
    assert get(url, tmp_path, sha(BODY)).read_bytes() == BODY
    assert len(site.log) == 2 and 0 < int(site.ranges[1][6:-1]) <= 200_000

def test_chunked_answer_without_length(site, tmp_path):
    url = site.put("a.zip", cuts=[200_000], chunked=True)
    assert get(url, tmp_path).read_bytes() == BODY
    assert len(site.log) == 2 and 0 < int(site.ranges[1][6:-1]) <= 200_000

def test_resumed_by_the_next_call(site, tmp_path, monkeypatch):
    url = site.put("a.zip", cuts=[123_456])
    stopped(url, tmp_path, monkeypatch)
    assert leftovers(tmp_path) == ["a.zip.part", "a.zip.part.json"]
    assert get(url, tmp_path).read_bytes() == BODY and site.ranges == [None, "bytes=123456-"] and site.sent == len(BODY)

def test_whole_part_is_not_fetched_again(site, tmp_path, monkeypatch):
    "Killed after the last byte, before the renaming"
    url = site.put("a.zip")
    with monkeypatch.context() as m:
        m.setattr(module, "_differs", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): get(url, tmp_path)
    assert leftovers(tmp_path) == ["a.zip.part", "a.zip.part.json"]
    assert get(url, tmp_path).read_bytes() == BODY and len(site.log) == 1

def test_server_without_ranges(site, tmp_path):
    url = site.put("a.zip", cuts=[100_000, 150_000], ranges=False)
    assert get(url, tmp_path, sha(BODY)).read_bytes() == BODY
    assert site.ranges == [None, "bytes=100000-", "bytes=150000-"] and site.sent == 550_000

def test_server_that_never_gets_further_is_given_up(site, tmp_path):
    url = site.put("a.zip", cuts=[100_000]*50, ranges=False)
    assert "after 100,000 of 300,000 bytes" in refused(url, tmp_path, "Repeat later: the 100,000 bytes that have come are kept", str(tmp_path/"a.zip"))
    assert len(site.log) == 1 + 3

# ---- fetch: changed and wrong files

OLD, NEW = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"
@pytest.mark.parametrize("how", [{}, dict(tag="", date=OLD), dict(tag='W/"weak"', date=OLD)], ids=["tag", "date", "weak tag"])
def test_changed_between_is_not_spliced(site, tmp_path, monkeypatch, how):
    stopped(site.put("a.zip", cuts=[100_000], **how), tmp_path, monkeypatch)
    later = dict(date=NEW) if how else {}
    url = site.put("a.zip", BODY[::-1], **how | later)
    assert get(url, tmp_path).read_bytes() == BODY[::-1] and site.ranges == [None, "bytes=100000-"]
    assert site.log[1].if_range == (how.get("date") or f'"{hashlib.md5(BODY).hexdigest()}"')

def test_server_that_ignores_if_range(site, tmp_path, monkeypatch):
    stopped(site.put("a.zip", cuts=[100_000]), tmp_path, monkeypatch)
    url = site.put("a.zip", BODY[::-1], trusting=True)
    assert get(url, tmp_path).read_bytes() == BODY[::-1] and site.ranges == [None, "bytes=100000-", None]

def test_shorter_file_between(site, tmp_path, monkeypatch):
    stopped(site.put("a.zip", cuts=[100_000]), tmp_path, monkeypatch)
    url = site.put("a.zip", BODY[:50_000], trusting=True)
    assert get(url, tmp_path).read_bytes() == BODY[:50_000] and site.ranges == [None, "bytes=100000-", None]

def test_nothing_to_tell_versions_apart(site, tmp_path, monkeypatch):
    "Neither tag nor digest: begin anew. With a digest: continue, and let it decide"
    stopped(site.put("a.zip", cuts=[100_000], tag=""), tmp_path, monkeypatch)
    url = site.put("a.zip", BODY[::-1], tag="")
    assert get(url, tmp_path).read_bytes() == BODY[::-1] and site.ranges == [None, None]
    stopped(site.put("b.zip", cuts=[100_000], tag=""), tmp_path, monkeypatch)
    url = site.put("b.zip", BODY[::-1], tag="")
    refused(url, tmp_path, sha(BODY)[7:], digest=sha(BODY))
    assert site.ranges[3] == "bytes=100000-" and leftovers(tmp_path) == ["a.zip"]
    site.put("b.zip", tag="")
    assert get(url, tmp_path, sha(BODY)).read_bytes() == BODY

def test_wrong_file(site, tmp_path):
    url, wrong = site.put("a.zip", BODY[:-1] + b"?"), sha(BODY[:-1] + b"?")
    refused(url, tmp_path, sha(BODY)[7:], wrong[7:], "has been removed", str(tmp_path/"a.zip"), digest=sha(BODY))
    assert leftovers(tmp_path) == [] and len(site.log) == 1
    refused(url, tmp_path, "md5", hashlib.md5(BODY).hexdigest(), digest=f"md5:{hashlib.md5(BODY).hexdigest()}")
    assert get(url, tmp_path, wrong.upper().replace("SHA256", "sha256")).exists()

def test_wrong_size_is_seen_before_the_first_byte(site, tmp_path):
    refused(site.put("a.zip"), tmp_path, "cannot be fetched", "300,000 bytes", "299,999", size=299_999)
    assert leftovers(tmp_path) == []

def test_wrong_file_put_by_hand_is_named_and_kept(site, tmp_path):
    (tmp_path/"a.zip").write_bytes(b"by hand")
    with pytest.raises(DraError, match="Delete it") as caught: get(site.put("a.zip"), tmp_path, sha(BODY))
    assert str(tmp_path/"a.zip") in str(caught.value) and (tmp_path/"a.zip").read_bytes() == b"by hand" and not site.log

def test_web_page_instead_of_a_file(site, tmp_path):
    refused(site.put("a.zip", b"<html>please log in</html>", type="text/html; charset=utf-8"), tmp_path, "web page")

# ---- fetch: refusals

@pytest.mark.parametrize("status, says", [(403, "forbids"), (404, "no such file"), (401, "account"), (410, "withdrawn")])
def test_refusals_are_final(site, tmp_path, status, says):
    refused(site.put("a.zip", status=[status]), tmp_path, str(status), says, "by hand", str(tmp_path/"a.zip"))
    assert len(site.log) == 1

def test_a_refusal_keeps_what_has_come(site, tmp_path, monkeypatch):
    url = site.put("a.zip", cuts=[100_000], status=[200, 403])
    refused(url, tmp_path, "403", "the 100,000 bytes that have come are kept")
    assert get(url, tmp_path).read_bytes() == BODY and site.sent == len(BODY)

def test_busy_server(site, tmp_path):
    assert get(site.put("a.zip", status=[503, 429, 500]), tmp_path).read_bytes() == BODY and len(site.log) == 4
    refused(site.put("b.zip", status=[503]*9), tmp_path, "503")
    assert len(site.log) == 8

def test_no_server(site, tmp_path):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    start = time.monotonic()
    refused(f"http://127.0.0.1:{port}/a.zip", tmp_path, "refuses the connection", str(tmp_path/"a.zip"))
    assert time.monotonic() - start < 5

def test_no_name(tmp_path, monkeypatch):
    def fail(*args, **kwargs): raise socket.gaierror(-2, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    refused("https://data.example.org/a.zip", tmp_path, "name is unknown", "not connected")

def test_silence(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    refused(site.put("a.zip", silent=2), tmp_path, "no answer within 0.3 s")
    assert len(site.log) == 1
    url = site.put("b.zip", cuts=[100_000], hold=2)
    assert get(url, tmp_path).read_bytes() == BODY and site.ranges[1:] == [None, "bytes=100000-"]

def test_server_gone_for_a_moment(site, tmp_path, monkeypatch):
    "Refused connections are final at first, but not after a cut"
    real, calls = module._open, []
    def shaky(*args):
        calls.append(args[1])
        if len(calls) in (2, 3): raise module._Away("the server refuses the connection")
        return real(*args)
    monkeypatch.setattr(module, "_open", shaky)
    assert get(site.put("a.zip", cuts=[100_000]), tmp_path).read_bytes() == BODY and calls == [0, 100_000, 100_000, 100_000]

def test_redirects(site, tmp_path):
    target = site.put("real.zip", cuts=[100_000])
    url = site.put("latest.zip", status=[301, 308], location=target)
    assert get(url, tmp_path).read_bytes() == BODY
    assert [o.range for o in site.log if o.path == "/real.zip"] == [None, "bytes=100000-"]
    with pytest.raises(module._Refused, match="not encrypted"):
        module._Redirect().redirect_request(module.urllib.request.Request("https://x.org/a"), None, 302, "", {}, "http://x.org/a")
    for scheme in ("file:///etc/passwd", "ftp://x.org/a.zip", "a.zip"):
        with pytest.raises(DraError, match="https://"): get(scheme, tmp_path)
    refused(site.put("odd.zip", status=[302], location="file:///etc/passwd"), tmp_path, "302")

def test_certificates_are_checked(tmp_path, site):
    if not shutil.which("openssl"): pytest.skip("needs openssl to make a certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-keyout", tmp_path/"key.pem", "-out", tmp_path/"cert.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path/"cert.pem", tmp_path/"key.pem")
    secure = Site(context)
    refused(secure.put("a.zip"), tmp_path/"in", "certificate is not valid")
    code = "import sys; from dra_nb.data.catalog import Archive; from dra_nb.data.download import fetch; print(fetch(Archive(sys.argv[1]), sys.argv[2], False))"
    trusted = succeeded(python(code, f"{secure.address}/a.zip", tmp_path/"in", cwd=REPO, SSL_CERT_FILE=tmp_path/"cert.pem", no_proxy="127.0.0.1"))
    assert (tmp_path/"in"/"a.zip").read_bytes() == BODY and "a.zip" in trusted.stdout
    secure.server.shutdown(); secure.server.server_close()

# ---- the disk

def test_disk_space_is_checked_first(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=299_999))
    with pytest.raises(DraError, match="make room") as caught: get(site.put("a.zip"), tmp_path)
    assert "300kB" in str(caught.value) and leftovers(tmp_path) == []

def test_full_disk_keeps_the_part(site, tmp_path):
    "A limit of 200,000 bytes per file stands for a disk that fills up"
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
            "from dra_nb.core import DraError; from dra_nb.data.catalog import Archive; from dra_nb.data.download import fetch\n"
            "try: fetch(Archive(sys.argv[1]), sys.argv[2], False)\nexcept DraError as e: print(e)")
    done = succeeded(python(code, site.put("a.zip"), tmp_path, cwd=REPO, no_proxy="127.0.0.1"))
    assert "cannot be written" in done.stdout and "make room" in done.stdout and (tmp_path/"a.zip.part").stat().st_size == 200_000
    assert get(f"{site.address}/a.zip", tmp_path).read_bytes() == BODY and site.ranges == [None, "bytes=200000-"]

def test_unwritable_folder(site, tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(DraError, match="cannot be written"): get(site.put("a.zip"), tmp_path/"file")

NAMES = {"/a/b.zip": "b.zip", "/a/b.zip?download=1#x": "b.zip", "/": "file", "/..": "file", "": "file", "/%2e%2e%2fevil.zip": "evil.zip",
         "/a%20b%5Cc.zip": "a_b_c.zip", "/.ssh": "ssh", "/ü.zip": "ü.zip"}
@pytest.mark.parametrize("path", NAMES)
def test_file_names(path): assert module._file_name(f"http://host{path}") == NAMES[path]

# ---- archives

FILES = {"set/a.png": BODY[:5000], "set/sub/b.png": bytes(range(256))*50, "set/ü 1.txt": b""}
ENDINGS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")

def pack(file, members):
    "An archive of (name or TarInfo or ZipInfo) -> bytes, format by its ending"
    if file.name.endswith("zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
            for o, data in members: z.writestr(o, data)
        return file
    with tarfile.open(file, "w:" + file.name.partition(".tar.")[2]) as t:
        for o, data in members:
            info = o if isinstance(o, tarfile.TarInfo) else tarfile.TarInfo(o)
            if info.isreg(): info.size = len(data)
            t.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return file

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
def special(name, kind, target=""):
    info = tarfile.TarInfo(name); info.type, info.linkname = kind, target
    return info
def zip_mode(name, mode):
    info = zipfile.ZipInfo(name); info.create_system, info.external_attr = 3, mode << 16
    return info

@pytest.fixture
def box(tmp_path):
    "A folder in which nothing may appear beside what it held; the archives lie elsewhere"
    (tmp_path/"box").mkdir(); (tmp_path/"files").mkdir()
    def untouched(): return sorted(p.name for p in tmp_path.rglob("*") if p.parent != tmp_path/"files" and not p.name.endswith(".lock")) == ["box", "files"]
    return SimpleNamespace(folder=tmp_path/"box", files=tmp_path/"files", untouched=untouched)

def not_unpacked(box, file, *words):
    with pytest.raises(DraError) as caught: unpack(file, box.folder/"out")
    assert [w for w in (str(file), *words) if w not in str(caught.value)] == [], str(caught.value)
    assert box.untouched()

@pytest.mark.parametrize("ending", ENDINGS)
def test_unpack(box, ending):
    file = pack(box.files/f"a.{ending}", FILES.items())
    assert contents(unpack(file, box.folder/"whole")) == FILES
    assert contents(unpack(file, box.folder/"stripped", strip=1)) == {k[4:]: v for k, v in FILES.items()}
    (box.folder/"empty").mkdir()
    assert contents(unpack(file, box.folder/"empty", strip=2)) == {"b.png": FILES["set/sub/b.png"]}
    with pytest.raises(DraError, match="is there already"): unpack(file, box.folder/"whole")
    with pytest.raises(DraError, match="3 leading"): unpack(file, box.folder/"none", strip=3)
    assert contents(box.folder/"whole") == FILES and leftovers(box.folder) == ["empty", "stripped", "whole"]
    assert (file.rename(box.files/"without_ending")) and contents(unpack(box.files/"without_ending", box.folder/"again")) == FILES

def test_only_bytes_are_taken(box):
    info = tarfile.TarInfo("a.sh"); info.mode, info.uid, info.mtime = 0o6777, 0, 0
    unpack(pack(box.files/"a.tar", [(info, b"#!")]), box.folder/"out")
    mode = (box.folder/"out"/"a.sh").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR | stat.S_IWOTH)

EVIL_NAMES = {"../evil": "leads out", "a/../../evil": "leads out", "..\\evil": "leads out", "a/.. /x": "leads out",
              "/tmp/evil": "absolute", "\\evil": "absolute", "//host/evil": "absolute", "C:\\evil": "drive", "c:evil": "drive", "a/b/D:/evil": "drive", "a\nb": "control"}
@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", EVIL_NAMES)
def test_evil_names(box, name, ending):
    "The bad member comes last: the good ones before it must not appear either"
    not_unpacked(box, pack(box.files/f"a.{ending}", [*FILES.items(), (name, b"evil")]), repr(name), EVIL_NAMES[name])

EVIL_MEMBERS = {"symlink": (tarfile.SYMTYPE, "/etc/passwd"), "symlink inside": (tarfile.SYMTYPE, "a.png"), "hardlink": (tarfile.LNKTYPE, "set/a.png"),
                "hardlink outside": (tarfile.LNKTYPE, "../../etc/passwd"), "character device": (tarfile.CHRTYPE,), "block device": (tarfile.BLKTYPE,),
                "fifo": (tarfile.FIFOTYPE,), "unknown": (b"9",)}
@pytest.mark.parametrize("kind", EVIL_MEMBERS)
def test_evil_tar_members(box, kind):
    not_unpacked(box, pack(box.files/"a.tar", [*FILES.items(), (special("set/l", *EVIL_MEMBERS[kind]), b"")]), "'set/l'", "link" if "link" in kind else "device or a pipe")

def test_writing_through_a_link(box):
    "A link to a folder, then a file below it"
    not_unpacked(box, pack(box.files/"a.tar", [(special("set/d", tarfile.SYMTYPE, str(box.files)), b""), ("set/d/evil", b"evil")]), "'set/d'", "link")

@pytest.mark.parametrize("mode, says", [(stat.S_IFLNK | 0o777, "link"), (stat.S_IFCHR, "device"), (stat.S_IFIFO, "device"), (stat.S_IFSOCK, "device")])
def test_evil_zip_members(box, mode, says):
    not_unpacked(box, pack(box.files/"a.zip", [*FILES.items(), (zip_mode("set/l", mode), b"/etc/passwd")]), "'set/l'", says)

def test_encrypted_zip(box):
    file = pack(box.files/"a.zip", FILES.items())
    data = bytearray(file.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + at] |= 1
    file.write_bytes(data)
    not_unpacked(box, file, "'set/a.png'", "encrypted")

@pytest.mark.parametrize("ending", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_twice_the_same_name(box, ending):
    not_unpacked(box, pack(box.files/f"a.{ending}", [*FILES.items(), ("set/./a.png", b"other")]), "'set/./a.png'", "twice")

@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_file_and_folder_of_the_same_name(box, ending):
    with pytest.raises(DraError): unpack(pack(box.files/f"a.{ending}", [("a", b"file"), ("a/b", b"below it")]), box.folder/"out")
    assert box.untouched()

@pytest.mark.parametrize("ending", ["zip", "tar.gz", "tar.xz"])
def test_bomb(box, ending, monkeypatch):
    "A gigabyte of zeros in an archive of a megabyte or less, and half a gigabyte of room"
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5*10**7))
    file = pack(box.files/f"a.{ending}", [(f"{i}.bin", bytes(10**7)) for i in range(6)])
    assert file.stat().st_size < 10**6
    with pytest.raises(DraError, match="60.0MB.*make room"): unpack(file, box.folder/"out")
    assert box.untouched()

def test_lying_zip(box):
    "A member that holds more than it declares is refused; it is never written beyond what was declared"
    file = pack(box.files/"a.zip", [("a.bin", bytes(10**6))])
    data = file.read_bytes().replace(struct.pack("<I", 10**6), struct.pack("<I", 10))
    file.write_bytes(data)
    not_unpacked(box, file, "damaged")

def test_zip_whose_list_lost_members(box):
    "A damaged length in the list swallows the members after it; zipfile alone would not notice"
    file = pack(box.files/"a.zip", FILES.items())
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\1\2") + 33] = 1  # the comment of the first member is 256 bytes long
    file.write_bytes(data)
    not_unpacked(box, file, "damaged")

def test_not_an_archive(box):
    for name, data in (("a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(600)), ("a.html", b"<html>"*200), ("a.zip", b"")):
        (box.files/name).write_bytes(data)
        not_unpacked(box, box.files/name, "none of the archives", "zip, tar")
    not_unpacked(box, box.files/"nothing.zip", "does not exist")
    not_unpacked(box, pack(box.files/"empty.zip", []), "holds no files")

@pytest.mark.parametrize("ending", ENDINGS)
def test_truncated_anywhere(box, ending):
    "Cut at any length: refused, or all the files are there (a tar may lose its padding)"
    whole = pack(box.files/f"whole.{ending}", FILES.items()).read_bytes()
    cuts = {len(whole) - 1, len(whole)//2, 600, *range(0, len(whole), max(512, len(whole)//40//512*512)), *random.Random(1).sample(range(len(whole)), 20)}
    refusals, file = 0, box.files/f"cut.{ending}"
    for n in sorted(o for o in cuts if o < len(whole)):
        file.write_bytes(whole[:n])
        try: got = contents(unpack(file, box.folder/"out"))
        except DraError as e: refusals += 1; assert str(file) in str(e)
        else: assert got == FILES and ending == "tar" and n > 5000 + 256*50; shutil.rmtree(box.folder/"out")
        assert box.untouched()
    assert refusals > 20

@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_anywhere(box, ending):
    "A changed byte: refused, or nothing got lost; never another kind of error"
    whole, rng, file = pack(box.files/f"whole.{ending}", FILES.items()).read_bytes(), random.Random(2), box.files/f"bad.{ending}"
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 200))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try: got = contents(unpack(file, box.folder/"out"))
        except DraError: pass
        else:
            assert ending == "tar" or sorted(got.values()) == sorted(FILES.values())
            shutil.rmtree(box.folder/"out")
        assert box.untouched()

# ---- whole datasets

FACTS = dict(title="Toy", domain="drawn plates", folder="toy", layout="train/good/*.png\ntest/...", where="ask toy@example.org for a password",
             licence="CC0", classes=("dent",), reader=read_mvtec, expected={"": {"train": 3, "test": 2, "dent": 2}})

def png(kind, seed):
    picture(kind, np.random.default_rng(seed), 32).save(file := io.BytesIO(), "png")
    return file.getvalue()

def toy(site, tmp_path, **how):
    "A dataset that is published in two files"
    (tmp_path/"published").mkdir(exist_ok=True)
    images = [(f"toy-1.0/{folder}/{i}.png", png(folder.split("/")[1], 9*i)) for folder, n in (("train/good", 3), ("test/good", 2), ("test/dent", 2)) for i in range(n)]
    files = pack(tmp_path/"published"/"images.zip", images), pack(tmp_path/"published"/"masks.tar.gz", [(f"dent/{i}_mask.png", png("dent", i)) for i in range(2)])
    urls = [site.put(f.name, f.read_bytes(), **how) for f in files]
    return Dataset("toy", **FACTS, files=(Archive(urls[0], f"sha256:{file_digest(files[0])}", files[0].stat().st_size, strip=1), Archive(urls[1], into="ground_truth")))

@pytest.fixture
def known(site, tmp_path, monkeypatch):
    monkeypatch.setitem(load_datasets(), "toy", toy(site, tmp_path))
    monkeypatch.setitem(load_datasets(), "form", Dataset("form", **FACTS | dict(folder="form", title="Form")))
    return tmp_path/"data"

def test_download(site, known, capsys):
    folder = download("toy", known, progress=False)
    out = capsys.readouterr().out
    assert "3 train and 4 test images, 2 of them anomalies (dent 2)" in out and "none is published" in out
    catalog = load_catalog("toy", known)
    assert folder == known/"toy" and len(catalog) == 7 and catalog["mask"].notna().sum() == 2 and os.listdir(known) == ["toy"]
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert download("toy", known) == folder and len(site.log) == 2 and f"Toy is in {known/'toy'}" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times

def test_download_through_the_command(site, known, capsys, monkeypatch):
    from dra_nb.experiments.cli import main
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["dra_nb", "datasets", *map(str, args)])
        try: main(); status = 0
        except SystemExit as e: status = e.code or 0
        return status, *capsys.readouterr()
    assert "get it: dra_nb datasets download toy   (or: ask toy@example.org" in call()[1]
    site.server.files["/images.zip"].cuts.append(1000)
    status, out, _ = call("download", "toy", "--data", known)
    assert status == 0 and f"Toy is in {known/'toy'}: 3 train" in out and site.ranges[1] == "bytes=1000-"
    assert "present: 3 train, 4 test images" in call("--data", known)[1]
    status, out, _ = call("--check", known)
    assert status == 0 and "toy" in out and "elpv" in out
    (known/"toy"/"test"/"dent"/"1.png").unlink()
    assert call("--check", known)[0] == 1
    status, out, err = call("download", "form", "--data", known)
    assert status == 2 and not (known/"form").exists()
    for part in ("ask toy@example.org for a password", str(known/"form"), "train/good/*.png\ntest/..."): assert part in err
    status, _, err = call("download", "tyo", "--data", known)
    assert status == 2 and "Did you mean 'toy'" in err

def test_a_folder_that_is_there_is_not_touched(site, known):
    (known/"TOY").mkdir(parents=True); (known/"TOY"/"notes.txt").write_text("mine")
    with pytest.raises(DraError, match="Move the folder away") as caught: download("toy", known, progress=False)
    assert str(known/"TOY") in str(caught.value) and contents(known) == {"TOY/notes.txt": b"mine"} and not site.log

def test_an_empty_folder_is_filled(site, known):
    (known/"toy").mkdir(parents=True)
    assert len(load_catalog("toy", download("toy", known, progress=False).parent)) == 7

def test_wrong_archive_of_a_dataset(site, known):
    "Refused; and once the right one is served, the same call succeeds"
    right = site.server.files["/images.zip"]
    site.put("images.zip", right.body[::-1])
    with pytest.raises(DraError, match="another file than the published one"): download("toy", known, progress=False)
    assert not (known/"toy").exists()
    site.server.files["/images.zip"] = right
    assert download("toy", known, progress=False) == known/"toy" and os.listdir(known) == ["toy"]

def test_unreadable_content_does_not_become_a_dataset(site, known, monkeypatch):
    dataset = load_datasets()["toy"]
    monkeypatch.setitem(load_datasets(), "toy", Dataset("toy", **FACTS, files=dataset.files[1:]))
    with pytest.raises(DraError, match="cannot be read") as caught: download("toy", known, progress=False)
    assert "train/good" in str(caught.value) and not (known/"toy").exists()

def test_malicious_archive_of_a_dataset(site, known, tmp_path, monkeypatch):
    evil = pack(tmp_path/"published"/"evil.zip", [("train/good/a.png", png("good", 0)), ("../../evil.png", b"")])
    monkeypatch.setitem(load_datasets(), "toy", Dataset("toy", **FACTS, files=(Archive(site.put("evil.zip", evil.read_bytes())),)))
    with pytest.raises(DraError, match="leads out"): download("toy", known, progress=False)
    assert not list(tmp_path.rglob("*.png")) and not (known/"toy").exists()

def test_files_put_by_hand_are_used(site, known, tmp_path):
    site.server.files.clear()
    with pytest.raises(DraError) as caught: download("toy", known, progress=False)
    place = str(caught.value).split("put it at ")[1].split(", and repeat")[0]
    for name in ("images.zip", "masks.tar.gz"):
        if name not in place: place = place.replace("file 1", "file 2").replace("images.zip", name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        shutil.copy(tmp_path/"published"/name, place)
    assert download("toy", known, progress=False) == known/"toy"

# ---- processes that are killed, or meet

PROCESS = """
import os, signal, sys
from dra_nb.data import catalog, download as module
from dra_nb.data.catalog import Archive, Dataset
address, digest, size, data, where, n = sys.argv[1:]
facts = dict(title="Toy", domain="", folder="toy", layout="", where="", licence="", classes=(), reader=catalog.read_mvtec)
files = Archive(f"{address}/images.zip", digest, int(size), strip=1), Archive(f"{address}/masks.tar.gz", into="ground_truth")
catalog.load_datasets()["toy"] = Dataset("toy", **facts, files=files)
if where:
    owner, _, name = where.rpartition(".")
    owner, calls = getattr(module, owner), []
    real = getattr(owner, name)
    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == int(n): os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, deadly)
module.download("toy", data, progress=False)
"""
def arguments(site, data, where="", n=0):
    o = load_datasets()["toy"].files[0]
    return site.address, o.digest, o.size, data, where, n

def begin(site, data):
    "A process of its own that downloads; it is not waited for"
    return subprocess.Popen([sys.executable, "-c", PROCESS, *map(str, arguments(site, data))], cwd=REPO, env={**os.environ, "no_proxy": "127.0.0.1"},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def run(site, data, where="", n=0): return python(PROCESS, *arguments(site, data, where, n), cwd=REPO, no_proxy="127.0.0.1")

def test_killed_half_way_through_the_download(site, known):
    file = site.server.files["/images.zip"]
    file.cuts, file.hold, half = [len(file.body)//2], 30, len(file.body)//2
    process = begin(site, known)
    part, limit = known/".toy.download"/"file 1"/"images.zip.part", time.monotonic() + 60
    while not (part.is_file() and site.log and site.log[0].sent == half):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    come = part.stat().st_size
    assert not (known/"toy").exists() and come <= half
    succeeded(run(site, known))
    assert [o.range for o in site.log] == [None, f"bytes={come}-" if come else None, None] and os.listdir(known) == ["toy"]
    assert len(load_catalog("toy", known)) == 7

STAGES = {"in the first archive": ("shutil.copyfileobj", 3), "in the second archive": ("shutil.copyfileobj", 9), "first file not renamed": ("os.replace", 1),
          "dataset not renamed": ("os.replace", 3), "archives not removed": ("shutil.rmtree", 1)}
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at(site, known, stage):
    done = run(site, known, *STAGES[stage])
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (known/"toy").exists() == (stage == "archives not removed")
    if (known/"toy").exists(): assert len(load_catalog("toy", known)) == 7
    succeeded(run(site, known))
    assert len(site.log) == 2 and len(load_catalog("toy", known)) == 7  # no file was fetched twice

def test_two_at_once(site, known):
    file = site.server.files["/images.zip"]
    file.cuts, file.hold = [1000], 1.5
    both = [begin(site, known), begin(site, known)]
    ends = [o.communicate(timeout=120) for o in both]
    assert [o.returncode for o in both] == [0, 0], ends
    assert [o.path for o in site.log] == ["/images.zip", "/images.zip", "/masks.tar.gz"] and site.sent == sum(len(o.body) for o in site.server.files.values())
    assert all("Toy is in" in out for out, _ in ends) and any("waiting" in out for out, _ in ends) and len(load_catalog("toy", known)) == 7
