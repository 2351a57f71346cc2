"""Arrays and arithmetic: tensors and their layout, random directions, zeroth-order steps and their log, the forms in which numbers travel."""
