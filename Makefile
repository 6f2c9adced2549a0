.PHONY: check test slow lint format bench notebooks

check: lint test

test:
	python -m pytest

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
	python -m benchmarks.adapt_vs_peft

notebooks:
	python -m pytest tests/test_notebooks.py
