"""napari plugin: segment medical images with words, correct, accept, train. Research use only."""
