"""The `heron` command: verbs that use server and client together. The only package that may know both."""
