# A thin front for run.py, which needs nothing but Python 3.11 or newer.
PYTHON ?= python3

.PHONY: demo test lint demo-model

demo test lint demo-model:
	@$(PYTHON) run.py $@
