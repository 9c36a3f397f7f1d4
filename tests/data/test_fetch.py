"Fetching one file from a real server on this machine: cut, changed, wrong and refused."

import hashlib
import shutil
import socket
import ssl
import subprocess
import time
from types import SimpleNamespace

import pytest
from conftest import REPO, python, succeeded
from download_site import BODY, Site, leftovers, local_site, sha

from dra_nb.core import DraError
from dra_nb.data import fetch as module
from dra_nb.data.fetch import fetch
from dra_nb.data.registry import Archive


@pytest.fixture
def site(monkeypatch):
    with local_site(monkeypatch) as site:
        yield site


def get(url, folder, digest="", size=0):
    return fetch(Archive(url, digest, size), folder, progress=False)


def refused(url, folder, *words, **published):
    "The message of a fetch that must fail and leave no file under the final name"
    with pytest.raises(DraError) as caught:
        get(url, folder, **published)
    message = str(caught.value)
    assert [w for w in (url, *words) if w not in message] == [], message
    assert not (folder / url.rsplit("/", 1)[-1]).exists()
    return message


def stopped(url, folder, monkeypatch, **published):
    "Fetch until the first cut, as a process does that is stopped then"
    with monkeypatch.context() as m:
        m.setattr(module.time, "sleep", lambda s: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(url, folder, **published)


# ---- whole, cut, resumed


def test_whole(site, tmp_path, capsys):
    file = get(site.put("a.zip"), tmp_path / "new", sha(BODY), len(BODY))
    assert file == tmp_path / "new" / "a.zip" and file.read_bytes() == BODY and leftovers(tmp_path / "new") == ["a.zip"]
    assert site.ranges == [None] and capsys.readouterr().out == "" and "python" not in site.log[0].agent.lower()
    assert get(f"{site.address}/a.zip", tmp_path / "new", sha(BODY)) == file and len(site.log) == 1  # it is there


def test_no_digest_is_said(site, tmp_path, caplog):
    get(site.put("a.zip"), tmp_path)
    assert sha(BODY)[7:] in caplog.text and "none is published" in caplog.text


@pytest.mark.parametrize("published", [dict(digest=sha(BODY)), {}], ids=["digest", "no digest"])
def test_cuts_are_resumed_and_nothing_is_fetched_twice(site, tmp_path, published):
    url = site.put("a.zip", cuts=[150_000, 1, 100_000])
    assert get(url, tmp_path, **published).read_bytes() == BODY
    assert site.ranges == [None, "bytes=150000-", "bytes=150001-", "bytes=250001-"] and site.sent == len(BODY)
    assert {o.if_range for o in site.log[1:]} == {site.server.files["/a.zip"].tag} and leftovers(tmp_path) == ["a.zip"]


def test_many_cuts_are_survived_as_long_as_there_is_progress(site, tmp_path):
    url = site.put("a.zip", cuts=[20_000] * 14)
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
        m.setattr(module, "file_fault", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(url, tmp_path)
    assert leftovers(tmp_path) == ["a.zip.part", "a.zip.part.json"]
    assert get(url, tmp_path).read_bytes() == BODY and len(site.log) == 1


def test_server_without_ranges(site, tmp_path):
    url = site.put("a.zip", cuts=[100_000, 150_000], ranges=False)
    assert get(url, tmp_path, sha(BODY)).read_bytes() == BODY
    assert site.ranges == [None, "bytes=100000-", "bytes=150000-"] and site.sent == 550_000


def test_server_that_never_gets_further_is_given_up(site, tmp_path):
    url = site.put("a.zip", cuts=[100_000] * 50, ranges=False)
    assert "after 100,000 of 300,000 bytes" in refused(
        url, tmp_path, "Repeat later: the 100,000 bytes that have come are kept", str(tmp_path / "a.zip")
    )
    assert len(site.log) == 1 + 3


# ---- changed and wrong files

OLD, NEW = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    "how", [{}, dict(tag="", date=OLD), dict(tag='W/"weak"', date=OLD)], ids=["tag", "date", "weak tag"]
)
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
    refused(url, tmp_path, sha(BODY)[7:], wrong[7:], "has been removed", str(tmp_path / "a.zip"), digest=sha(BODY))
    assert leftovers(tmp_path) == [] and len(site.log) == 1
    refused(url, tmp_path, "md5", hashlib.md5(BODY).hexdigest(), digest=f"md5:{hashlib.md5(BODY).hexdigest()}")
    assert get(url, tmp_path, wrong.upper().replace("SHA256", "sha256")).exists()


def test_wrong_size_is_seen_before_the_first_byte(site, tmp_path):
    refused(site.put("a.zip"), tmp_path, "cannot be fetched", "300,000 bytes", "299,999", size=299_999)
    assert leftovers(tmp_path) == []


def test_wrong_file_put_by_hand_is_named_and_kept(site, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"by hand")
    with pytest.raises(DraError, match="Delete it") as caught:
        get(site.put("a.zip"), tmp_path, sha(BODY))
    assert (
        str(tmp_path / "a.zip") in str(caught.value)
        and (tmp_path / "a.zip").read_bytes() == b"by hand"
        and not site.log
    )


def test_web_page_instead_of_a_file(site, tmp_path):
    refused(site.put("a.zip", b"<html>please log in</html>", type="text/html; charset=utf-8"), tmp_path, "web page")


# ---- refusals


@pytest.mark.parametrize(
    "status, says", [(403, "forbids"), (404, "no such file"), (401, "account"), (410, "withdrawn")]
)
def test_refusals_are_final(site, tmp_path, status, says):
    refused(site.put("a.zip", status=[status]), tmp_path, str(status), says, "by hand", str(tmp_path / "a.zip"))
    assert len(site.log) == 1


def test_a_refusal_keeps_what_has_come(site, tmp_path, monkeypatch):
    url = site.put("a.zip", cuts=[100_000], status=[200, 403])
    refused(url, tmp_path, "403", "the 100,000 bytes that have come are kept")
    assert get(url, tmp_path).read_bytes() == BODY and site.sent == len(BODY)


def test_busy_server(site, tmp_path):
    assert get(site.put("a.zip", status=[503, 429, 500]), tmp_path).read_bytes() == BODY and len(site.log) == 4
    refused(site.put("b.zip", status=[503] * 9), tmp_path, "503")
    assert len(site.log) == 8


def test_no_server(site, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    start = time.monotonic()
    refused(f"http://127.0.0.1:{port}/a.zip", tmp_path, "refuses the connection", str(tmp_path / "a.zip"))
    assert time.monotonic() - start < 5


def test_no_name(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

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
    real, calls = module.open_url, []

    def shaky(*args):
        calls.append(args[1])
        if len(calls) in (2, 3):
            raise module.NoAnswer("the server refuses the connection")
        return real(*args)

    monkeypatch.setattr(module, "open_url", shaky)
    assert get(site.put("a.zip", cuts=[100_000]), tmp_path).read_bytes() == BODY and calls == [
        0,
        100_000,
        100_000,
        100_000,
    ]


def test_redirects(site, tmp_path):
    target = site.put("real.zip", cuts=[100_000])
    url = site.put("latest.zip", status=[301, 308], location=target)
    assert get(url, tmp_path).read_bytes() == BODY
    assert [o.range for o in site.log if o.path == "/real.zip"] == [None, "bytes=100000-"]
    with pytest.raises(module.TransferRefused, match="not encrypted"):
        module.Redirect().redirect_request(
            module.urllib.request.Request("https://x.org/a"), None, 302, "", {}, "http://x.org/a"
        )
    for scheme in ("file:///etc/passwd", "ftp://x.org/a.zip", "a.zip"):
        with pytest.raises(DraError, match="https://"):
            get(scheme, tmp_path)
    refused(site.put("odd.zip", status=[302], location="file:///etc/passwd"), tmp_path, "302")


def test_certificates_are_checked(tmp_path, site):
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            tmp_path / "key.pem",
            "-out",
            tmp_path / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    secure = Site(context)
    refused(secure.put("a.zip"), tmp_path / "in", "certificate is not valid")
    code = (
        "import sys; from dra_nb.data.registry import Archive; from dra_nb.data.fetch import fetch; "
        "print(fetch(Archive(sys.argv[1]), sys.argv[2], False))"
    )
    trusted = succeeded(
        python(
            code,
            f"{secure.address}/a.zip",
            tmp_path / "in",
            cwd=REPO,
            SSL_CERT_FILE=tmp_path / "cert.pem",
            no_proxy="127.0.0.1",
        )
    )
    assert (tmp_path / "in" / "a.zip").read_bytes() == BODY and "a.zip" in trusted.stdout
    secure.server.shutdown()
    secure.server.server_close()


# ---- the disk


def test_disk_space_is_checked_first(site, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=299_999))
    with pytest.raises(DraError, match="make room") as caught:
        get(site.put("a.zip"), tmp_path)
    assert "300kB" in str(caught.value) and leftovers(tmp_path) == []


def test_full_disk_keeps_the_part(site, tmp_path):
    "A limit of 200,000 bytes per file stands for a disk that fills up"
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from dra_nb.core import DraError\n"
        "from dra_nb.data.registry import Archive\n"
        "from dra_nb.data.fetch import fetch\n"
        "try: fetch(Archive(sys.argv[1]), sys.argv[2], False)\nexcept DraError as e: print(e)"
    )
    done = succeeded(python(code, site.put("a.zip"), tmp_path, cwd=REPO, no_proxy="127.0.0.1"))
    assert (
        "cannot be written" in done.stdout
        and "make room" in done.stdout
        and (tmp_path / "a.zip.part").stat().st_size == 200_000
    )
    assert get(f"{site.address}/a.zip", tmp_path).read_bytes() == BODY and site.ranges == [None, "bytes=200000-"]


def test_unwritable_folder(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DraError, match="cannot be written"):
        get(site.put("a.zip"), tmp_path / "file")


NAMES = {
    "/a/b.zip": "b.zip",
    "/a/b.zip?download=1#x": "b.zip",
    "/": "file",
    "/..": "file",
    "": "file",
    "/%2e%2e%2fevil.zip": "evil.zip",
    "/a%20b%5Cc.zip": "a_b_c.zip",
    "/.ssh": "ssh",
    "/ü.zip": "ü.zip",
}


@pytest.mark.parametrize("path", NAMES)
def test_file_names(path):
    assert module.url_file_name(f"http://host{path}") == NAMES[path]
