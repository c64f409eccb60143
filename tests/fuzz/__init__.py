"""Fuzzing: properties that hold for any bytes, held against as many as there is time for, guided by coverage.

`make fuzz` runs each target for a minute (FUZZ_ARGS="--seconds 600 sessions"); it needs atheris, which the extra `fuzz`
installs. What a run finds is a file in `fuzz-found/`: `python -m tests.fuzz.one TARGET FILE` plays it again. It goes to
`corpus/`, and what it shows becomes a test in its own words.
"""
