"""The largest memory of a process that a test starts."""

# An expression for the code of that process. getrusage would not do: the kernel hands the peak of the parent on to its children.
PEAK_BYTES = "1024 * int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
