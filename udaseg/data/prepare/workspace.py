"""Build a prepared folder at a temporary path; resumable, replaces the old folder at the end.

```
prepared/NAME            the finished dataset; complete, or absent
prepared/.NAME.tmp       the next version, while it is being built
prepared/.NAME.journal   one line for each finished pair of the next version
prepared/.NAME.old       the previous version, only during the replacement
```
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from udaseg.data.datasets.index import INDEX_NAME, PreparedDataset, index_document
from udaseg.data.datasets.pairs import Pair
from udaseg.data.prepare.manifest import (
    Fingerprint,
    Manifest,
    Row,
    format_row,
    parse_row,
    read_manifest,
    rows_by_key,
    write_manifest,
)
from udaseg.data.prepare.rules import SOURCE_NAME, PrepareOptions
from udaseg.errors import DataError
from udaseg.files import rename_durably, sha256, sha256_of, sync_to_disk, write_atomic


class Workspace:
    """A prepared folder that is being built, by one process at a time.

    Args:
        final: Path of the finished folder.
        folder: Folder of the source images and labels.
        label_digest: Digest of all settings that affect labels; labels written with another digest
            are not reused.
    """

    def __init__(self, final: Path, folder: Path, label_digest: str) -> None:
        self.final, self.folder, self.label_digest = final, folder, label_digest
        self.temporary_folder, self._journal_path, self._fresh_journal = _workspace_paths(final)
        self._journal: TextIO | None = None
        self._journal_rows: dict[tuple[str, str], Row] = {}
        self._finished_rows: dict[tuple[str, str], Row] = {}

    def resume(self) -> None:
        """Load the pairs that a killed run and the finished dataset already contain."""
        recover(self.final)
        manifest = _manifest_or_none(self.final)
        if manifest is not None and manifest.conversion_digest == self.label_digest:
            self._finished_rows = rows_by_key(manifest.rows)
        self._journal_rows = self._read_journal()
        self._remove_other_files(self._journal_rows.values())
        lines = [json.dumps(self.label_digest), *map(format_row, self._journal_rows.values())]
        self.temporary_folder.mkdir(parents=True, exist_ok=True)
        # A fixed name, not a random one, so that files left by a kill do not accumulate.
        self._fresh_journal.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._fresh_journal.replace(self._journal_path)
        self._journal = self._journal_path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the journal; finished pairs stay for the next run."""
        if self._journal is not None:
            self._journal.close()

    def reusable_row(self, pair: Pair, split: str) -> Row | None:
        """Return the row of a pair that is finished and unchanged, with its label in place."""
        row = self._journal_rows.get((split, pair.key))
        if (
            row is not None
            and row.describes(self.folder, pair.image, pair.label)
            and self._is_complete(row)
        ):
            return row
        row = self._finished_rows.get((split, pair.key))
        if row is None or not row.describes(self.folder, pair.image, pair.label):
            return None
        if row.prepared is None or self._link_label(row.prepared):
            return row
        return None

    def add_to_journal(self, row: Row) -> None:
        """Write a finished pair to the journal, in case this run is killed."""
        assert self._journal is not None
        self._journal.write(f"{format_row(row)}\n")
        self._journal.flush()

    def finish(
        self,
        dataset: PreparedDataset,
        rows: Sequence[Row],
        source: dict[str, Any],
        options: PrepareOptions,
        label_reader: tuple[str, str, str] | None,
    ) -> None:
        """Write index, source and manifest, then replace the finished folder.

        Args:
            dataset: The prepared dataset.
            rows: Its pairs.
            source: Description of the sources.
            options: Options that were applied.
            label_reader: See `Manifest`.
        """
        self._remove_other_files(rows)
        documents = {
            INDEX_NAME: index_document(dataset),
            SOURCE_NAME: {**source, "rules": options.rules()},
        }
        files = {}
        for name, document in documents.items():
            data = json.dumps(document, allow_nan=False).encode()
            files[name] = sha256(data)
            write_atomic(self.temporary_folder / name, data)
        manifest = Manifest(dataset.image_root, self.label_digest, files, tuple(rows), label_reader)
        write_manifest(self.temporary_folder, manifest)
        sync_to_disk()
        if self.final.exists():
            self.final.rename(_previous_path(self.final))
        rename_durably(self.temporary_folder, self.final)
        recover(self.final)
        self.close()

    def _is_complete(self, row: Row) -> bool:
        """Return whether a label is complete; after a power loss a file may lack its content."""
        if row.prepared is None:
            return True
        path = self.temporary_folder / row.prepared.path
        return row.prepared.matches(path) and sha256_of(path) == row.prepared.sha256

    def _link_label(self, prepared: Fingerprint) -> bool:
        """Link a label of the finished dataset into this folder, or copy it without hard links."""
        source, target = self.final / prepared.path, self.temporary_folder / prepared.path
        if not prepared.matches(source):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # the file system has no hard links
            shutil.copy2(source, target)
        return prepared.matches(target)

    def _read_journal(self) -> dict[tuple[str, str], Row]:
        """Return the pairs that a killed run finished; its last line may be incomplete."""
        rows: list[Row] = []
        try:
            first, *lines = self._journal_path.read_text(encoding="utf-8").splitlines()
            if json.loads(first) == self.label_digest:
                for line in lines:
                    rows.append(parse_row(line))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # keep the rows before the incomplete line
        return rows_by_key(rows)

    def _remove_other_files(self, rows: Iterable[Row]) -> None:
        """Remove all files except the labels of `rows`, such as incomplete or obsolete labels."""
        labels_to_keep = {row.prepared.path for row in rows if row.prepared is not None}
        for top, folders, file_names in os.walk(self.temporary_folder, topdown=False):
            for name in file_names:
                path = Path(top, name)
                if path.relative_to(self.temporary_folder).as_posix() not in labels_to_keep:
                    path.unlink()
            for name in folders:
                with suppress(OSError):  # the folder is not empty
                    Path(top, name).rmdir()


def recover(final: Path) -> None:
    """Complete an interrupted replacement; caches of unchanged labels move to the new folder."""
    old = _previous_path(final)
    if not old.exists():
        return
    if not final.exists():
        old.rename(final)
        return
    old_manifest, new_manifest = _manifest_or_none(old), _manifest_or_none(final)
    if (
        old_manifest is not None
        and new_manifest is not None
        and old_manifest.conversion_digest == new_manifest.conversion_digest
    ):
        for cache in sorted(old.glob("cache-*")):
            if not (final / cache.name).exists():
                cache.rename(final / cache.name)
    shutil.rmtree(old)


def is_clean(final: Path) -> bool:
    """Return whether no interrupted run left files."""
    return not any(path.exists() for path in (_previous_path(final), *_workspace_paths(final)))


def clear_workspace(final: Path) -> None:
    """Remove the files of an interrupted run, once the finished dataset is up to date."""
    folder, *journals = _workspace_paths(final)
    shutil.rmtree(folder, ignore_errors=True)
    for path in journals:
        path.unlink(missing_ok=True)


def _workspace_paths(final: Path) -> tuple[Path, Path, Path]:
    """Return the paths of the temporary folder, its journal, and the journal being written."""
    folder, journal, fresh = (
        f".{final.name}.{suffix}" for suffix in ("tmp", "journal", "journal.new")
    )
    return final.with_name(folder), final.with_name(journal), final.with_name(fresh)


def _previous_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _manifest_or_none(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DataError:
        return None
