"""Write the seeds into the corpus: `python -m tests.fuzz.write_corpus`, after the wire or a format changed. Inputs that once failed stay as they are."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.seeds import all_seeds

if __name__ == "__main__":
    for name, data in all_seeds().items():
        folder = Path(__file__).parent / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "valid").write_bytes(data)
