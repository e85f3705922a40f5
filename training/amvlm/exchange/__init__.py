"""Studies in and out: other people's folder layouts, and ours."""

from amvlm.exchange.accounts import ImportReport
from amvlm.exchange.exporting import export_dicom_seg, export_labels
from amvlm.exchange.importing import import_study
from amvlm.exchange.reports import checked_report, import_reports

__all__ = ["ImportReport", "checked_report", "export_dicom_seg", "export_labels", "import_reports", "import_study"]
