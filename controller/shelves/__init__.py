"""Power shelves, battery backup units and coolant pumps: buses beside the tick, read by a process of their own."""
