"""Files are written in one step, and told apart by their hashes."""

import hashlib
import io
import os
import stat
import threading

import pytest

from torchorbit.files import digest, replace_bytes, replace_text, replacing


def test_the_old_file_is_there_until_the_new_one_is(tmp_path):
    path = tmp_path / "deeper" / "file"
    replace_text(path, "old")
    with replacing(path) as aside:
        aside.write_text("half of")
        assert path.read_text() == "old"
        aside.write_text("new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("write", [lambda path: replace_text(path, "\ud800"), lambda path: replace_bytes(path, 1)])
def test_where_writing_fails_the_old_file_stays_and_nothing_is_left(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises((UnicodeEncodeError, TypeError)):
        write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="there are no such permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        (tmp_path / "plain").write_bytes(b"")
        replace_bytes(tmp_path / "replaced", b"")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "replaced")]
    assert modes == [0o666 & ~mask] * 2


def test_threads_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    texts = [str(n) * 100_000 for n in range(8)]
    threads = [threading.Thread(target=replace_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    content = os.urandom(3 * 2**20 + 1)
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert digest(content) == digest(tmp_path / "file") == digest(io.BytesIO(content)) == expected
    assert digest(content, "sha1", b"blob 1\0") == hashlib.sha1(b"blob 1\0" + content).hexdigest()
