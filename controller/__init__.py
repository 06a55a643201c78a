"""What runs above the tick: site file, supervisor, records, command line. Proposes; never outranks the kernel."""
