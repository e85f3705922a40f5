"""Studies in and out: other people's folder layouts, and ours."""

from amvlm.exchange.accounts import ImportReport
from amvlm.exchange.exporting import export_dicom_seg, export_labels
from amvlm.exchange.importing import import_study

__all__ = ["ImportReport", "export_dicom_seg", "export_labels", "import_study"]
