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
from typing import Any, Self, TextIO

from udaseg import files
from udaseg.data.datasets.index import INDEX_NAME, PreparedDataset, index_document
from udaseg.data.datasets.pairs import Pair
from udaseg.data.files.bit_depth import is_deep
from udaseg.data.files.forms import parse_form
from udaseg.data.prepare import manifest as manifests
from udaseg.data.prepare.manifest import Fingerprint, Manifest, Row
from udaseg.data.prepare.rules import SOURCE_NAME

_Rows = dict[tuple[str, str], Row]
"""Rows by split and key."""


class Workspace:
    """A prepared folder that is being built, by one process at a time.

    Entering the context loads the pairs that a killed run and the finished dataset contain; after
    an error, the finished pairs stay for the next run.

    Args:
        final: Path of the finished folder.
        folder: Folder of the source images and labels.
        label_digest: Digest of all settings that affect labels; labels written with another digest
            are not reused.
    """

    def __init__(self, final: Path, folder: Path, label_digest: str) -> None:
        self.final, self.folder, self.label_digest = final, folder, label_digest
        self._journal_head = [manifests.MANIFEST_FORMAT, label_digest]
        self.temporary_folder, self._journal_path, self._fresh_journal = _workspace_paths(final)
        self._journal: TextIO
        self._journal_rows: _Rows = {}
        self._finished_rows: _Rows = {}

    def __enter__(self) -> Self:
        manifest = manifests.find_manifest(self.final)
        if manifest is not None and manifest.conversion_digest == self.label_digest:
            self._finished_rows = _by_split_and_key(self._known_rows(manifest))
        self._journal_rows = self._read_journal()
        self._remove_other_files(self._journal_rows.values())
        rows = map(manifests.format_row, self._journal_rows.values())
        lines = [json.dumps(self._journal_head), *rows]
        self.temporary_folder.mkdir(parents=True, exist_ok=True)
        # A fixed name, not a random one, so that files left by a kill do not accumulate.
        self._fresh_journal.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._fresh_journal.replace(self._journal_path)
        self._journal = self._journal_path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def reusable_row(self, pair: Pair, split: str) -> Row | None:
        """Return the row of a pair that is finished and unchanged, with its label in place."""
        for rows, puts_in_place in (
            (self._journal_rows, self._is_complete),
            (self._finished_rows, self._link_label),
        ):
            row = rows.get((split, pair.key))
            if row is None or not row.describes(self.folder, pair.image, pair.label):
                continue
            if row.prepared is None or puts_in_place(row.prepared):
                return row
        return None

    def add_to_journal(self, row: Row) -> None:
        """Write a finished pair to the journal, in case this run is killed."""
        self._journal.write(f"{manifests.format_row(row)}\n")
        self._journal.flush()

    def finish(
        self,
        dataset: PreparedDataset,
        rows: Sequence[Row],
        source: dict[str, Any],
        label_reader: manifests.LabelReader | None,
    ) -> None:
        """Write index, source and manifest, then replace the finished folder.

        Args:
            dataset: The prepared dataset.
            rows: Its pairs.
            source: The sources and the options that were applied.
            label_reader: See `Manifest`.
        """
        self._remove_other_files(rows)
        digests = {}
        for name, document in {INDEX_NAME: index_document(dataset), SOURCE_NAME: source}.items():
            data = json.dumps(document, allow_nan=False).encode()
            digests[name] = files.sha256(data)
            files.write_atomic(self.temporary_folder / name, data)
        manifest = Manifest(
            dataset.image_root, self.label_digest, digests, tuple(rows), label_reader
        )
        manifests.write_manifest(self.temporary_folder, manifest)
        files.sync_to_disk()
        if self.final.exists():
            self.final.rename(_previous_path(self.final))
        files.rename_durably(self.temporary_folder, self.final)
        recover(self.final)

    def _known_rows(self, manifest: Manifest) -> list[Row]:
        """Return the rows of the finished dataset that have all that a row has today.

        Earlier versions did not look at how many bits 16-bit images use, nor turn images.
        """
        looked = files.read_json(self.final / INDEX_NAME).get("bits") is not None
        return [
            row
            for row in manifest.rows
            if (looked or not is_deep(self.folder / row.image.path))
            and not manifest.is_outdated(row)
        ]

    def _is_complete(self, prepared: Fingerprint) -> bool:
        """Return whether a label is complete; after a power loss a file may lack its content."""
        path = self.temporary_folder / prepared.path
        return prepared.matches(path) and files.sha256_of(path) == prepared.sha256

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

    def _read_journal(self) -> _Rows:
        """Return the pairs that a killed run finished; its last line may be incomplete."""
        rows: list[Row] = []
        # keep the rows before an incomplete line
        with suppress(OSError, ValueError):
            first, *lines = self._journal_path.read_text(encoding="utf-8").splitlines()
            if parse_form(first, list[Any]) == self._journal_head:
                for line in lines:
                    rows.append(manifests.parse_row(line))
        return _by_split_and_key(rows)

    def _remove_other_files(self, rows: Iterable[Row]) -> None:
        """Remove all files except the labels of `rows`, such as incomplete or obsolete labels."""
        labels_to_keep = {row.prepared.path for row in rows if row.prepared is not None}
        files.remove_other_files(self.temporary_folder, labels_to_keep)


def _by_split_and_key(rows: Iterable[Row]) -> _Rows:
    return {(row.split, row.key): row for row in rows}


def recover(final: Path) -> None:
    """Complete an interrupted replacement; caches of unchanged labels move to the new folder."""
    old = _previous_path(final)
    if not old.exists():
        return
    if not final.exists():
        old.rename(final)
        return
    before, now = manifests.find_manifest(old), manifests.find_manifest(final)
    if before and now and before.conversion_digest == now.conversion_digest:
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
    folder, journal, fresh_journal = (
        final.with_name(f".{final.name}.{suffix}") for suffix in ("tmp", "journal", "journal.new")
    )
    return folder, journal, fresh_journal


def _previous_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")
