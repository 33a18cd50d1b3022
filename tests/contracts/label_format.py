"""What every label format must do. To test one of your own, subclass it and fill in the methods."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from udaseg.errors import DataError

SIZES = [(13, 21), (1, 1), (1, 9), (8, 1), (6, 64)]
THREADS = 8


def make_ids(size, count, seed=0):
    """Return random ids from 0 to `count` - 1; the corners of large images have known ids."""
    ids = np.random.default_rng(seed).integers(0, count, size)
    ids[0, 0], ids[-1, -1] = 0, count - 1
    return ids


class LabelFormatContract:
    """Every member passes these tests."""

    count = 19
    """Number of ids that `encode` can store."""

    def read(self, path, data):
        """Return the ids in the content of a file: the function to test."""
        raise NotImplementedError

    def encode(self, ids):
        """Return the content of a file that stores these ids, (H, W) from 0 to `count` - 1."""
        raise NotImplementedError

    def stored(self, ids):
        """Return what `read` returns for these ids."""
        return ids

    def wrong_forms(self):
        """Return sound files by name that cannot hold ids in this format."""
        raise NotImplementedError

    @pytest.fixture
    def put(self, tmp_path):
        (tmp_path / "files").mkdir()

        def put(data, name="label.png"):
            path = tmp_path / "files" / name
            path.write_bytes(data)
            return path

        return put

    @pytest.mark.parametrize("size", SIZES)
    def test_the_ids_are_those_that_were_stored(self, put, size):
        ids = make_ids(size, self.count)
        data = self.encode(ids)
        labels = self.read(put(data), data)
        np.testing.assert_array_equal(labels, self.stored(ids))
        assert labels.shape == size
        assert np.issubdtype(labels.dtype, np.integer)

    def test_no_two_ids_are_confused(self, put):
        ids = np.arange(self.count)[None]
        data = self.encode(ids)
        assert len(np.unique(self.read(put(data), data))) == self.count

    def test_a_file_that_is_cut_off_is_refused_with_its_path(self, put):
        data = self.encode(make_ids((13, 21), self.count))
        for length in sorted({0, 1, 7, 8, 24, 40, *range(0, len(data), 11), len(data) - 1}):
            path = put(data[:length])
            with pytest.raises(DataError) as caught:
                self.read(path, data[:length])
            assert str(path) in str(caught.value), length

    @pytest.mark.parametrize("data", [b"", b"no image\n" * 9, bytes(300)], ids=len)
    def test_what_is_no_label_is_refused_with_its_path(self, put, data):
        path = put(data)
        with pytest.raises(DataError) as caught:
            self.read(path, data)
        assert str(path) in str(caught.value)

    def test_a_form_that_cannot_hold_ids_is_refused_with_its_path(self, put):
        assert self.wrong_forms()
        for name, data in self.wrong_forms().items():
            path = put(data)
            with pytest.raises(DataError) as caught:
                self.read(path, data)
            assert str(path) in str(caught.value), name

    def test_the_input_is_not_changed(self, put):
        data = self.encode(make_ids((13, 21), self.count))
        copy, path = bytes(bytearray(data)), put(data)
        before = path.stat()
        self.read(path, data)
        after = path.stat()
        assert data == copy == path.read_bytes()
        assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
        assert list(path.parent.iterdir()) == [path]

    def test_each_call_returns_its_own_array(self, put):
        data = self.encode(make_ids((13, 21), self.count))
        path = put(data)
        first, second = self.read(path, data), self.read(path, data)
        assert not np.shares_memory(first, second)
        assert not np.shares_memory(first, np.frombuffer(data, np.uint8))

    def test_threads_do_not_disturb_each_other(self, put):
        files = []
        for seed in range(THREADS):
            ids = make_ids((40, 30 + seed), self.count, seed)
            data = self.encode(ids)
            files.append((put(data, f"{seed}.png"), data, self.stored(ids)))
        with ThreadPoolExecutor(THREADS) as pool:
            results = list(pool.map(lambda file: self.read(*file[:2]), files * 6))
        for labels, (_, _, expected) in zip(results, files * 6, strict=True):
            np.testing.assert_array_equal(labels, expected)
