"""What several benchmarks use: command line, result files, processes, checkpoints."""
