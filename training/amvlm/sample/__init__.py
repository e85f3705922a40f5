"""The bundled study (hippocampus, CC BY-SA 4.0) and the model made from it."""

from amvlm.sample.study import START_SET, bundled_model_folder, copy_sample_study, sample_splits

__all__ = ["START_SET", "bundled_model_folder", "copy_sample_study", "sample_splits"]
