"""What tests share: polling with a deadline, real server and client processes, a proxy that misbehaves."""
