"""What `import heron` gives: runs as objects of Python, above the parts that the commands are made of."""
