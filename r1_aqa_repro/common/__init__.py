"""What every other room stands on: errors, the terminal, files, intervals, processes."""
