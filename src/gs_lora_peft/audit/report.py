"""The report of an audit, as it is handed out: files, and the record in the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..io import StrPath, as_path, sha256_of
from ..ledger import AUDIT_FOLDER, ForgettingLedger
from .page import save_report
from .results import AuditResults

_PUBLISHED = (".json", ".md", ".png")  # kinds of files that may be published


@dataclass(frozen=True)
class AuditReport(AuditResults):
    """An audit: `audit_run(...).save("report")` writes it. The arguments are those of [`AuditResults`]."""

    def save(self, folder: StrPath) -> list[Path]:
        """Writes `audit.json`, `report.md`, `report.html` and the figures to a folder, see [`save_report`].

        Args:
            folder (`str` or `os.PathLike`):
                The folder, made if it is missing.

        Returns:
            `list[pathlib.Path]`: The files.

        Raises:
            OSError: If a file could not be written.
        """
        return save_report(self, folder)

    def record(self, run: StrPath, folder: StrPath | None = None, *, replace: bool = False) -> list[Path]:
        """Writes the report to `audit` in the folder of the run, and its summary into the ledger.

        The summary replaces that of an earlier audit, unless that one tried more and found worse. [`push_to_hub`]
        publishes it, and the JSON, Markdown and PNG files of `audit` as they are now, unless classes are withheld or
        the files were removed.

        Args:
            run (`str` or `os.PathLike`):
                The folder of the run that was audited.
            folder (`str` or `os.PathLike`, *optional*):
                Another folder for the report, which is not published then.
            replace (`bool`, *optional*, defaults to `False`):
                Whether to replace a worse verdict of the same tasks by one of fewer attacks, figures or references.

        Returns:
            `list[pathlib.Path]`: The files of the report.

        Raises:
            LedgerError: If the run has another base model, or lacks a task that was audited; if another process works
                in the folder; if `audit` is a symbolic link; or as [`WorseAuditError`] without `replace`. Nothing is
                written then.
            OSError: If a file could not be written.
        """
        ledger = ForgettingLedger.load(as_path(run, "run"))
        with ledger.changes():
            (original,) = (model for model in self.models if model.kind == "original")
            ledger.check_base(original.fingerprint)
            ledger.record_audit(self.summary(), replace=replace)  # refuses other tasks before anything is written
            files = self.save(ledger.folder / AUDIT_FOLDER if folder is None else folder)
            if folder is None:
                kept = [file for file in files if file.suffix in _PUBLISHED]
                hashes = {f"{AUDIT_FOLDER}/{file.name}": sha256_of(file) for file in kept}
                ledger.record_audit(self.summary(), hashes, replace=True)  # itself
        return files
