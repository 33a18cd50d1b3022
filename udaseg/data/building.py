"""The prepared folder in the making: goes on where a killed run stopped, then takes its place.

```
prepared/NAME            the finished set; whole, or not there
prepared/.NAME.tmp       the next one, while it is made
prepared/.NAME.journal   a line for each of its pairs that is done
prepared/.NAME.old       the one before, for the moment of the change
```
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from udaseg.data.durable import moved, written_out
from udaseg.data.images import write_atomic
from udaseg.data.index import INDEX_NAME, PreparedDataset, index_document
from udaseg.data.manifest import (
    Fingerprint,
    Manifest,
    Row,
    keyed,
    read_manifest,
    row_line,
    row_of,
    sha256,
    sha256_of,
    write_manifest,
)
from udaseg.data.pairs import Pair
from udaseg.data.source import SOURCE_NAME, Rules
from udaseg.errors import DataError


class Building:
    """A prepared folder in the making, to be used by one process at a time.

    Args:
        final: Where it will be.
        folder: Of the images and labels.
        meaning: Digest of what decides over labels besides the pairs; labels that were made with
            another are not kept.
    """

    def __init__(self, final: Path, folder: Path, meaning: str) -> None:
        self.final, self.folder, self.meaning = final, folder, meaning
        self.place, self._journal_path, self._fresh_journal = _unfinished(final)
        self._journal: TextIO | None = None
        self._begun: dict[tuple[str, str], Row] = {}
        self._done: dict[tuple[str, str], Row] = {}

    def begin(self) -> None:
        """Take over what a killed run left and what the finished set holds."""
        settle(self.final)
        done = _manifest(self.final)
        if done is not None and done.meaning == self.meaning:
            self._done = keyed(done.rows)
        self._begun = self._journaled()
        self._prune(self._begun.values())
        lines = [json.dumps(self.meaning), *map(row_line, self._begun.values())]
        self.place.mkdir(parents=True, exist_ok=True)
        # a name of its own, not a random one, so that a kill leaves nothing to be found
        self._fresh_journal.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._fresh_journal.replace(self._journal_path)
        self._journal = self._journal_path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Let go of the journal; what is done stays for the next run."""
        if self._journal is not None:
            self._journal.close()

    def kept(self, pair: Pair, split: str) -> Row | None:
        """Return the row of a pair that is done and has not changed; its label is in place."""
        row = self._begun.get((split, pair.key))
        if row is not None and row.of(self.folder, pair.image, pair.label) and self._whole(row):
            return row
        row = self._done.get((split, pair.key))
        if row is None or not row.of(self.folder, pair.image, pair.label):
            return None
        if row.prepared is None or self._taken_over(row.prepared):
            return row
        return None

    def note(self, row: Row) -> None:
        """Note that a pair is done, for the case that this run is killed."""
        assert self._journal is not None
        self._journal.write(f"{row_line(row)}\n")
        self._journal.flush()

    def finish(
        self, dataset: PreparedDataset, rows: Sequence[Row], source: dict[str, Any], rules: Rules
    ) -> None:
        """Write index, source and manifest, and put the folder in its place.

        Args:
            dataset: What was prepared.
            rows: Its pairs.
            source: What to note about the sources.
            rules: What was left out, and how.
        """
        self._prune(rows)
        documents = {
            INDEX_NAME: index_document(dataset),
            SOURCE_NAME: {**source, "rules": asdict(rules)},
        }
        files = {}
        for name, document in documents.items():
            data = json.dumps(document, allow_nan=False).encode()
            files[name] = sha256(data)
            write_atomic(self.place / name, data)
        manifest = Manifest(dataset.image_root, self.meaning, files, tuple(rows))
        write_manifest(self.place, manifest)
        written_out()
        if self.final.exists():
            self.final.rename(_old(self.final))
        moved(self.place, self.final)
        settle(self.final)
        self.close()

    def _whole(self, row: Row) -> bool:
        """Return whether a label is here; after a loss of power one may be without its content."""
        if row.prepared is None:
            return True
        path = self.place / row.prepared.path
        return row.prepared.holds(path) and sha256_of(path) == row.prepared.sha256

    def _taken_over(self, prepared: Fingerprint) -> bool:
        """Bring a label of the finished set here, without copying where the disk can do so."""
        there, here = self.final / prepared.path, self.place / prepared.path
        if not prepared.holds(there):
            return False
        here.parent.mkdir(parents=True, exist_ok=True)
        here.unlink(missing_ok=True)
        try:
            os.link(there, here)
        except OSError:  # no hard links there
            shutil.copy2(there, here)
        return prepared.holds(here)

    def _journaled(self) -> dict[tuple[str, str], Row]:
        """Return the pairs that a killed run had done; its last line may be torn."""
        rows: list[Row] = []
        try:
            first, *lines = self._journal_path.read_text(encoding="utf-8").splitlines()
            if json.loads(first) == self.meaning:
                for line in lines:
                    rows.append(row_of(line))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # what was read before the torn line counts
        return keyed(rows)

    def _prune(self, rows: Iterable[Row]) -> None:
        """Remove all but the labels of `rows`: half a label, or one that is not wanted now."""
        wanted = {row.prepared.path for row in rows if row.prepared is not None}
        for top, folders, names in os.walk(self.place, topdown=False):
            for name in names:
                path = Path(top, name)
                if path.relative_to(self.place).as_posix() not in wanted:
                    path.unlink()
            for name in folders:
                with suppress(OSError):  # it is not empty
                    Path(top, name).rmdir()


def settle(final: Path) -> None:
    """Complete a change of folders that was cut off; caches of the same labels move along."""
    old = _old(final)
    if not old.exists():
        return
    if not final.exists():
        old.rename(final)
        return
    before, now = _manifest(old), _manifest(final)
    if before is not None and now is not None and before.meaning == now.meaning:
        for cache in sorted(old.glob("cache-*")):
            if not (final / cache.name).exists():
                cache.rename(final / cache.name)
    shutil.rmtree(old)


def settled(final: Path) -> bool:
    """Return whether no run was cut off."""
    return not any(path.exists() for path in (_old(final), *_unfinished(final)))


def clear_building(final: Path) -> None:
    """Remove what a run that was cut off left, for when the finished set is up to date."""
    place, *journals = _unfinished(final)
    shutil.rmtree(place, ignore_errors=True)
    for path in journals:
        path.unlink(missing_ok=True)


def _unfinished(final: Path) -> tuple[Path, Path, Path]:
    """Return where the next folder is made, its journal, and the journal while it is written."""
    place, journal, fresh = (f".{final.name}.{end}" for end in ("tmp", "journal", "journal.new"))
    return final.with_name(place), final.with_name(journal), final.with_name(fresh)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DataError:
        return None
