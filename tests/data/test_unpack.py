"Archives of every kind, and those that nobody should unpack: malicious, encrypted, too large, damaged at any byte."

import random
import shutil
import stat
import struct
import tarfile
import zipfile
from types import SimpleNamespace

import pytest
from download_site import BODY, contents, leftovers, pack

from dra_nb.core import DraError
from dra_nb.data.unpack import unpack_archive

FILES = {"set/a.png": BODY[:5000], "set/sub/b.png": bytes(range(256)) * 50, "set/ü 1.txt": b""}
ENDINGS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_mode(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.fixture
def box(tmp_path):
    "A folder in which nothing may appear beside what it held; the archives lie elsewhere"
    (tmp_path / "box").mkdir()
    (tmp_path / "files").mkdir()

    def untouched():
        return sorted(
            p.name for p in tmp_path.rglob("*") if p.parent != tmp_path / "files" and not p.name.endswith(".lock")
        ) == ["box", "files"]

    return SimpleNamespace(folder=tmp_path / "box", files=tmp_path / "files", untouched=untouched)


def not_unpacked(box, file, *words):
    with pytest.raises(DraError) as caught:
        unpack_archive(file, box.folder / "out")
    assert [w for w in (str(file), *words) if w not in str(caught.value)] == [], str(caught.value)
    assert box.untouched()


@pytest.mark.parametrize("ending", ENDINGS)
def test_unpack(box, ending):
    file = pack(box.files / f"a.{ending}", FILES.items())
    assert contents(unpack_archive(file, box.folder / "whole")) == FILES
    assert contents(unpack_archive(file, box.folder / "stripped", strip=1)) == {k[4:]: v for k, v in FILES.items()}
    (box.folder / "empty").mkdir()
    assert contents(unpack_archive(file, box.folder / "empty", strip=2)) == {"b.png": FILES["set/sub/b.png"]}
    with pytest.raises(DraError, match="is there already"):
        unpack_archive(file, box.folder / "whole")
    with pytest.raises(DraError, match="3 leading"):
        unpack_archive(file, box.folder / "none", strip=3)
    assert contents(box.folder / "whole") == FILES and leftovers(box.folder) == ["empty", "stripped", "whole"]
    assert (file.rename(box.files / "without_ending")) and contents(
        unpack_archive(box.files / "without_ending", box.folder / "again")
    ) == FILES


def test_only_bytes_are_taken(box):
    info = tarfile.TarInfo("a.sh")
    info.mode, info.uid, info.mtime = 0o6777, 0, 0
    unpack_archive(pack(box.files / "a.tar", [(info, b"#!")]), box.folder / "out")
    mode = (box.folder / "out" / "a.sh").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR | stat.S_IWOTH)


EVIL_NAMES = {
    "../evil": "leads out",
    "a/../../evil": "leads out",
    "..\\evil": "leads out",
    "a/.. /x": "leads out",
    "/tmp/evil": "absolute",
    "\\evil": "absolute",
    "//host/evil": "absolute",
    "C:\\evil": "drive",
    "c:evil": "drive",
    "a/b/D:/evil": "drive",
    "a\nb": "control",
}


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", EVIL_NAMES)
def test_evil_names(box, name, ending):
    "The bad member comes last: the good ones before it must not appear either"
    not_unpacked(box, pack(box.files / f"a.{ending}", [*FILES.items(), (name, b"evil")]), repr(name), EVIL_NAMES[name])


EVIL_MEMBERS = {
    "symlink": (tarfile.SYMTYPE, "/etc/passwd"),
    "symlink inside": (tarfile.SYMTYPE, "a.png"),
    "hardlink": (tarfile.LNKTYPE, "set/a.png"),
    "hardlink outside": (tarfile.LNKTYPE, "../../etc/passwd"),
    "character device": (tarfile.CHRTYPE,),
    "block device": (tarfile.BLKTYPE,),
    "fifo": (tarfile.FIFOTYPE,),
    "unknown": (b"9",),
}


@pytest.mark.parametrize("kind", EVIL_MEMBERS)
def test_evil_tar_members(box, kind):
    not_unpacked(
        box,
        pack(box.files / "a.tar", [*FILES.items(), (special("set/l", *EVIL_MEMBERS[kind]), b"")]),
        "'set/l'",
        "link" if "link" in kind else "device or a pipe",
    )


def test_writing_through_a_link(box):
    "A link to a folder, then a file below it"
    not_unpacked(
        box,
        pack(box.files / "a.tar", [(special("set/d", tarfile.SYMTYPE, str(box.files)), b""), ("set/d/evil", b"evil")]),
        "'set/d'",
        "link",
    )


@pytest.mark.parametrize(
    "mode, says",
    [(stat.S_IFLNK | 0o777, "link"), (stat.S_IFCHR, "device"), (stat.S_IFIFO, "device"), (stat.S_IFSOCK, "device")],
)
def test_evil_zip_members(box, mode, says):
    not_unpacked(
        box, pack(box.files / "a.zip", [*FILES.items(), (zip_mode("set/l", mode), b"/etc/passwd")]), "'set/l'", says
    )


def test_encrypted_zip(box):
    file = pack(box.files / "a.zip", FILES.items())
    data = bytearray(file.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + at] |= 1
    file.write_bytes(data)
    not_unpacked(box, file, "'set/a.png'", "encrypted")


@pytest.mark.parametrize("ending", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_twice_the_same_name(box, ending):
    not_unpacked(
        box, pack(box.files / f"a.{ending}", [*FILES.items(), ("set/./a.png", b"other")]), "'set/./a.png'", "twice"
    )


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_file_and_folder_of_the_same_name(box, ending):
    with pytest.raises(DraError):
        unpack_archive(pack(box.files / f"a.{ending}", [("a", b"file"), ("a/b", b"below it")]), box.folder / "out")
    assert box.untouched()


@pytest.mark.parametrize("ending", ["zip", "tar.gz", "tar.xz"])
def test_bomb(box, ending, monkeypatch):
    "A gigabyte of zeros in an archive of a megabyte or less, and half a gigabyte of room"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * 10**7))
    file = pack(box.files / f"a.{ending}", [(f"{i}.bin", bytes(10**7)) for i in range(6)])
    assert file.stat().st_size < 10**6
    with pytest.raises(DraError, match="60.0MB.*make room"):
        unpack_archive(file, box.folder / "out")
    assert box.untouched()


def test_lying_zip(box):
    "A member that holds more than it declares is refused; it is never written beyond what was declared"
    file = pack(box.files / "a.zip", [("a.bin", bytes(10**6))])
    data = file.read_bytes().replace(struct.pack("<I", 10**6), struct.pack("<I", 10))
    file.write_bytes(data)
    not_unpacked(box, file, "damaged")


def test_zip_whose_list_lost_members(box):
    "A damaged length in the list swallows the members after it; zipfile alone would not notice"
    file = pack(box.files / "a.zip", FILES.items())
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\1\2") + 33] = 1  # the comment of the first member is 256 bytes long
    file.write_bytes(data)
    not_unpacked(box, file, "damaged")


def test_not_an_archive(box):
    for name, data in (("a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(600)), ("a.html", b"<html>" * 200), ("a.zip", b"")):
        (box.files / name).write_bytes(data)
        not_unpacked(box, box.files / name, "none of the archives", "zip, tar")
    not_unpacked(box, box.files / "nothing.zip", "does not exist")
    not_unpacked(box, pack(box.files / "empty.zip", []), "holds no files")


@pytest.mark.parametrize("ending", ENDINGS)
def test_truncated_anywhere(box, ending):
    "Cut at any length: refused, or all the files are there (a tar may lose its padding)"
    whole = pack(box.files / f"whole.{ending}", FILES.items()).read_bytes()
    cuts = {
        len(whole) - 1,
        len(whole) // 2,
        600,
        *range(0, len(whole), max(512, len(whole) // 40 // 512 * 512)),
        *random.Random(1).sample(range(len(whole)), 20),
    }
    refusals, file = 0, box.files / f"cut.{ending}"
    for n in sorted(o for o in cuts if o < len(whole)):
        file.write_bytes(whole[:n])
        try:
            got = contents(unpack_archive(file, box.folder / "out"))
        except DraError as e:
            refusals += 1
            assert str(file) in str(e)
        else:
            assert got == FILES and ending == "tar" and n > 5000 + 256 * 50
            shutil.rmtree(box.folder / "out")
        assert box.untouched()
    assert refusals > 20


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_anywhere(box, ending):
    "A changed byte: refused, or nothing got lost; never another kind of error"
    whole, rng, file = (
        pack(box.files / f"whole.{ending}", FILES.items()).read_bytes(),
        random.Random(2),
        box.files / f"bad.{ending}",
    )
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 200))] ^= (
            1 << rng.randrange(8)
        )
        file.write_bytes(data)
        try:
            got = contents(unpack_archive(file, box.folder / "out"))
        except DraError:
            pass
        else:
            assert ending == "tar" or sorted(got.values()) == sorted(FILES.values())
            shutil.rmtree(box.folder / "out")
        assert box.untouched()


def test_a_packing_that_python_does_not_know(box):
    archive = box.files / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a.txt", "a" * 99)
    content = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):  # the number of the method, in both headers
        at = content.index(mark) + place
        content[at : at + 2] = (97).to_bytes(2, "little")  # WavPack
    archive.write_bytes(content)
    not_unpacked(box, archive, "cannot be unpacked by Python", "unpack it by hand")
