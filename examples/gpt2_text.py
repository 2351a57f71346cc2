"""Fine-tune GPT-2 with LoRA on text files, the next token being the label: `python examples/gpt2_text.py --text FOLDER --model hf:gpt2`.

--model is a folder or a name of the hub. Without it a small GPT-2 with random weights and a tokenizer of bytes is made, so that the example runs anywhere:
it learns little in a minute, but everything that happens to the large one happens to it. The default text is this repository's own documentation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from local_run import Run, example_arguments, run_locally
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2Config


def own_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what only this example takes."""
    parser.add_argument("--model", help="hf:FOLDER or hf:NAME (default: a small random one)")
    parser.add_argument("--text", type=Path, help="text file, or folder of .txt files (default: the documentation here)")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample (default: 64)")


def small_model(folder: Path) -> str:
    """Write a configuration of GPT-2 with four blocks and a tokenizer with a token for each byte; return how it is named."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    GPT2Config(vocab_size=256, n_positions=256, n_embd=64, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    return f"hf:{folder}"


def texts(directory: Path, source: Path | None) -> tuple[Path, Path]:
    """Return a training and a test file: all text of the source, its last tenth for testing."""
    files = (
        [source]
        if source and source.is_file()
        else sorted((source or Path(__file__).resolve().parents[1]).glob("*.txt" if source else "*.md"))
    )
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    directory.mkdir(parents=True, exist_ok=True)
    train, test = directory / "train.txt", directory / "test.txt"
    train.write_text(text[: len(text) * 9 // 10], encoding="utf-8")
    test.write_text(text[len(text) * 9 // 10 :], encoding="utf-8")
    return train, test


def main() -> int:
    """Prepare, then train."""
    options = example_arguments(__doc__, rounds=10, more=own_arguments)
    train, test = texts(options.directory, options.text)
    # Random weights have to learn everything, so the blocks are trained whole.
    adapter = "adapter=lora rank=8 head_blocks=1" if options.model else "weights=random adapter=none"
    server = {
        "model": options.model or small_model(options.directory / "model"),
        "cut": 1,
        "model-options": adapter,
        "data-spec": f"text:{options.length}:next-token",
        "eval-data": f"text:{test}",
        "local-steps": options.local_steps or 10,
        "batch-size": 8,
    }
    return run_locally(Run(options, server, f"text:{train}"))


if __name__ == "__main__":
    sys.exit(main())
