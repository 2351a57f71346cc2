"""What survives the process: checkpoints, the run's identity, the spool of uploads, content-addressed blobs."""
