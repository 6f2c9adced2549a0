.PHONY: check test quick slow lint format bench notebooks

check: lint test

test:
	python -m pytest

# The mathematics alone: differences, numpy, torch and the fast implementations, within a minute.
quick:
	python -m pytest --hypothesis-profile glance -k "not kernel" tests/test_operations.py tests/test_decoder.py \
		tests/reference tests/ops

slow:
	python -m pytest -m slow

lint:
	ruff check .
	ruff format --check .
	pyright

format:
	ruff check --fix .
	ruff format .

bench:
	python -m benchmarks.everything

notebooks:
	python -m pytest tests/test_notebooks.py
