"""Hardware abstraction: profiles, protocols, wires and the bus plan. Knows _core, never controller."""
