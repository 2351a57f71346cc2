"""The page that `heron report` writes: figures of a summary as text, tables and drawings, in one file that needs nothing else."""
