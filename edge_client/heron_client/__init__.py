"""The lean client: runs programs over flat buffers, steps without gradients, uploads activations. No torch, transformers or pydantic."""
